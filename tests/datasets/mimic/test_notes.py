"""Notes of MIMIC-IV: leak guard, sections, encoders, and patients without notes."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mrpipe.datasets import get_dataset
from mrpipe.datasets.mimic.cohort import build_cohort
from mrpipe.datasets.mimic.note_text import BLOCK, clean, clean_all, pieces, sections
from mrpipe.datasets.mimic.notes import note_texts, read_notes
from mrpipe.datasets.mimic.options import MimicOptions
from mrpipe.errors import DataError
from mrpipe.stages.simulate import simulate
from mrpipe.store.reader import Store
from mrpipe.text.encoders import get_encoder, hashed_counts
from tests.datasets.mimic.mimic_toy import SUBJECT, Toy, store_of

A, B = str(SUBJECT), str(SUBJECT + 1)
SUMMARY = """Name:  ___                     Unit No:   ___
Service: MEDICINE

Chief Complaint:
Dyspnea, "short of breath"

Brief Hospital Course:
# CHF: the patient was diuresed with
furosemide. Palliative care was consulted. Weight fell by 3 kg.

The family chose comfort measures.

Discharge Disposition:
Expired

Discharge Instructions:
Dear Ms. ___, take your pills.
"""


def test_sections_are_found_and_blanks_are_removed() -> None:
    assert [n for n, _ in sections(SUMMARY)] == [
        "name",
        "service",
        "chief complaint",
        "brief hospital course",
        "discharge disposition",
        "discharge instructions",
    ]
    plain = clean(SUMMARY, guard=False)
    assert "Expired" in plain
    assert "___" not in plain
    assert "MEDICINE" not in plain
    assert "diuresed with furosemide" in plain


def test_the_leak_guard_removes_and_counts_disposition_and_telltale_sentences() -> None:
    removed: Counter[str] = Counter()
    text = clean(SUMMARY, guard=True, removed=removed)
    assert not re.search("expired|palliative|comfort", text, re.IGNORECASE)
    assert "Weight fell by 3 kg." in text
    assert "furosemide." in text
    assert removed == {
        "sections on discharge disposition or death": 1,
        "sentences about death, hospice or comfort care": 2,
    }


def test_notes_are_cleaned_in_order_by_any_number_of_processes() -> None:
    texts = [SUMMARY.replace("3 kg", f"{i} kg") for i in range(2 * BLOCK + 1)]
    one, two = Counter[str](), Counter[str]()
    expected = [clean(text, guard=True, removed=one) for text in texts]
    assert clean_all(texts, 2, guard=True, removed=two) == expected
    assert one == two
    assert clean_all([], 2, guard=True, removed=two) == []


@pytest.mark.parametrize(
    "sentence",
    [
        "Patient expired at 10:15.",
        "She PASSED AWAY.",
        "Time of death 03:00.",
        "Discharged to hospice.",
        "Made CMO.",
        "Withdrawal of care was discussed.",
        "He was pronounced dead.",
        "terminal extubation",
        "Code status: DNR/DNI.",
        "Do not resuscitate.",
    ],
)
def test_telltale_phrases(sentence: str) -> None:
    assert clean(f"Findings: lungs clear. {sentence} Heart normal", guard=True).find(sentence[:9]) == -1


def test_selected_sections_and_pieces() -> None:
    assert clean(SUMMARY, guard=True, only=("Chief Complaint",)) == 'chief complaint Dyspnea, "short of breath"'
    words = " ".join(str(i) for i in range(100))
    assert pieces(words, 10, 0) == [" ".join(str(i) for i in range(k, k + 10)) for k in range(0, 100, 10)]
    some = pieces(words, 10, 3)
    assert len(some) == 3
    assert (some[0][0], some[-1][:2]) == ("0", "90")


def export(tmp_path: Path) -> Path:
    toy = Toy(8)
    toy.visit(SUBJECT, 3, "2150-08-01 08:00:00", "2150-08-09 12:00:00", hospital_expire_flag=1)
    toy.note(SUBJECT, 1, "2150-01-15 00:00:00", "Impression: alpha finding")
    toy.note(SUBJECT, 2, "2150-06-09 00:00:00", "Impression: beta finding")  # the day of the prediction
    toy.discharge[-1]["storetime"] = "2150-06-11 09:00:00"
    toy.note(SUBJECT, 2, "2150-06-10 00:00:00", "Impression: gamma finding")  # the day after it
    toy.note(SUBJECT, 3, "2150-06-08 00:00:00", "Impression: delta finding")  # from the terminal visit
    toy.note(SUBJECT, None, "2150-05-01 08:00:00", "Impression: epsilon finding", kind="radiology")
    for i in range(2, 8):
        toy.note(SUBJECT + i, 1, "2150-01-15 00:00:00", f"Impression: word{i} finding")
    return toy.write(tmp_path / "raw")


def texts(store: Store, sample: str) -> list[str]:
    return store.samples().filter(sample_id=sample).collect()["note_text"].to_list()[0]


def test_notes_after_the_prediction_time_or_from_a_terminal_visit_are_removed(tmp_path: Path) -> None:
    raw = export(tmp_path)
    store = store_of(raw, tmp_path / "guarded", store_text=True)
    assert [t.split()[1] for t in texts(store, A)] == ["alpha", "beta"]
    both = store_of(raw, tmp_path / "both", store_text=True, notes=("discharge", "radiology"))
    assert [t.split()[1] for t in texts(both, A)] == ["alpha", "epsilon", "beta"]
    assert both.modality("note").filter(sample_id=A).collect()["time"].to_list()[0] == pytest.approx(
        [4.667, 111, 149.667], abs=1e-2
    )
    # The guard is about text only: times and excluded visits count without it.
    free = store_of(raw, tmp_path / "free", store_text=True, leak_guard=False)
    assert [t.split()[1] for t in texts(free, A)] == ["alpha", "beta"]
    signed = store_of(raw, tmp_path / "signed", store_text=True, summary_time="storetime")
    assert [t.split()[1] for t in texts(signed, A)] == ["alpha"]


def test_notes_of_one_day_are_in_the_order_of_their_storage(tmp_path: Path) -> None:
    toy = Toy(8)
    for second, word in ((30, "gamma"), (10, "alpha"), (20, "beta")):
        toy.note(SUBJECT, 1, "2150-01-12 00:00:00", f"Impression: {word} finding")
        toy.discharge[-1].update(storetime=f"2150-01-12 00:00:{second}", note_seq=second)
    for name in ("delta", "epsilon"):  # stored at once: by note_seq
        toy.note(SUBJECT, 1, "2150-01-13 00:00:00", f"Impression: {name} finding")
        toy.discharge[-1].update(note_seq=-len(toy.discharge))
    toy.discharge.append(toy.discharge[0])  # twice in the export
    order = ["alpha", "beta", "gamma", "epsilon", "delta"]
    raw = toy.write(tmp_path / "raw")
    samples = build_cohort(raw, MimicOptions()).samples
    assert [t.split()[1] for t in note_texts(raw, samples, MimicOptions())["note_text"][0]] == order
    features = read_notes(raw, samples, MimicOptions(note_features=512))
    (batch,) = features.batches
    columns = [int(hashed_counts([[w]], 512).argmax()) for w in order]
    steps = np.array(batch["x"][0].as_py())
    assert steps[:, columns].tolist() == np.eye(5).tolist()


def test_a_patient_without_notes_lacks_the_modality_and_text_stays_out_of_the_store(tmp_path: Path) -> None:
    store = store_of(export(tmp_path), tmp_path / "store")
    samples = store.samples().collect()
    assert samples.filter(sample_id=B)["row_note"].item() is None
    assert samples["row_note"].null_count() == 1
    assert "note_text" not in samples.columns
    for path in store.path.rglob("*"):
        assert not path.is_file() or b"alpha" not in path.read_bytes()


def test_an_export_without_notes_lacks_the_modality(tmp_path: Path) -> None:
    simulate(
        get_dataset("mimic"),
        tmp_path / "raw",
        {"n_patients": 100, "n_chart_rows": 500, "n_lab_rows": 500, "notes": False},
    )
    store = store_of(tmp_path / "raw", tmp_path / "store")
    assert tuple(m.name for m in store.modalities) == ("lab", "code", "lab_summary")
    assert any("no discharge notes" in n for n in store.manifest.notes)


def test_hashed_counts_are_counts_and_encoders_give_unit_vectors(tmp_path: Path) -> None:
    raw = export(tmp_path)
    counts = store_of(raw, tmp_path / "counts", note_features=64)
    x = counts.arrays("note")
    assert x.x.shape[1] == 64
    assert (x.x.sum(axis=1) == 3).all()
    assert set(counts.dictionary.filter(modality="note")["kind"]) == {"count"}
    hashed = store_of(raw, tmp_path / "hashing", text_encoder="hashing-32", store_text=True)
    vectors = hashed.arrays("note")
    assert vectors.modality.encoder == get_encoder("hashing-32").name
    np.testing.assert_allclose(np.linalg.norm(vectors.x, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(vectors.x[0], get_encoder("hashing-32").sentences([texts(hashed, A)[0]])[0], atol=1e-6)


def test_precomputed_vectors_are_joined_by_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mrpipe")
    raw = export(tmp_path)
    notes = pl.read_csv(next(raw.glob("note/discharge.csv*")))["note_id"].to_list()
    x = np.random.default_rng(0).normal(size=(len(notes), 4)).astype(np.float32)
    path = tmp_path / "vectors.parquet"
    pl.DataFrame({"id": notes, "vector": x}).write_parquet(path)
    option = f"precomputed:{path}"
    store = store_of(raw, tmp_path / "store", text_encoder=option)
    hashed = store_of(raw, tmp_path / "hashing", text_encoder="hashing-4")
    found = store.arrays("note")
    assert found.sample_id.tolist() == hashed.arrays("note").sample_id.tolist()
    assert found.x.shape == hashed.arrays("note").x.shape
    assert all((x == row).all(axis=1).any() for row in found.x)
    assert store.manifest.options["text_encoder"] == found.modality.encoder
    assert found.modality.encoder.startswith("precomputed/")
    assert "vectors.parquet: 0 of" in caplog.text
    pl.DataFrame({"id": ["none"], "vector": x[:1]}).write_parquet(path)
    with pytest.raises(DataError, match="notes have no vector") as caught:
        store_of(raw, tmp_path / "other", text_encoder=option)
    assert str(SUBJECT) not in str(caught.value)


def test_no_simulated_note_reveals_a_death(tmp_path: Path) -> None:
    simulate(get_dataset("mimic"), tmp_path / "raw", {"n_patients": 300, "n_chart_rows": 500, "n_lab_rows": 500})
    raw = pl.read_csv(tmp_path / "raw/note/discharge.csv.gz")
    assert raw["text"].str.contains("passed away").any()
    store = store_of(tmp_path / "raw", tmp_path / "store", store_text=True)
    kept = store.samples().collect()["note_text"].explode().drop_nulls()
    assert not kept.str.contains("(?i)passed away|expired|Home With Service").any()
