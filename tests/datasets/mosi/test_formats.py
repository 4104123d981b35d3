"""All formats from simulation to features: the same reviews give the same clips, words and frames in each format."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest

from mrpipe.datasets.mosi import DATASET
from mrpipe.datasets.mosi.export import open_export
from mrpipe.datasets.mosi.options import FORMATS, MosiOptions, MosiSimulation
from mrpipe.errors import DataError, MrpipeError, UsageError
from mrpipe.schema import Cohort, Features

SMALL = MosiSimulation(n_videos=6, clips_per_video=9.0, infinite_audio=0.0)
MODALITIES = ("text", "audio", "vision")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mosi")
    variants = {f: dataclasses.replace(SMALL, format=f) for f in FORMATS}
    variants["utterance"] = dataclasses.replace(SMALL, utterance_audio=True)
    for name, options in variants.items():
        (folder / name).mkdir()
        (folder / f"{name}.truth").mkdir()
        DATASET.simulate(folder / name, folder / f"{name}.truth", options)
    return {name: folder / name for name in variants}


def read(raw: Path, modality: str, **settings: object) -> dict[str, np.ndarray]:
    """Features of each sample, (steps, d) or (d,)."""
    options = MosiOptions(**settings)
    return as_dict(DATASET.modalities[modality].read(raw, DATASET.cohort(raw, options).samples, options))


def as_dict(features: Features) -> dict[str, np.ndarray]:
    values = {}
    for batch in features.batches:
        assert batch.schema == features.modality.arrow_schema()
        for row in batch.to_pylist():
            x = np.array(row["x"], dtype=np.float32)
            assert "length" not in row or row["length"] == len(x)
            values[row["sample_id"]] = x
    assert list(values) == sorted(values)
    return values


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert list(a) == list(b)
    assert len(a) > 30
    for key in a:
        assert a[key].shape == b[key].shape, key
        assert np.allclose(a[key], b[key], rtol=1e-5, atol=1e-5, equal_nan=True), key


@pytest.mark.parametrize("name", [*FORMATS, "utterance"])
def test_check_and_read_of_every_format(exports: dict[str, Path], name: str) -> None:
    options = MosiOptions()
    checked = DATASET.check(exports[name], options)
    assert {p.name for p in checked.files} == {p.name for p in exports[name].rglob("*") if p.is_file()}
    present = DATASET.modalities_of(exports[name], options)
    assert present == (("text", "audio") if name == "utterance" else MODALITIES)
    cohort = DATASET.cohort(exports[name], options)
    ids = set(cohort.samples["sample_id"])
    for modality in present:
        features = DATASET.modalities[modality].read(exports[name], cohort.samples, options)
        values = as_dict(features)
        assert set(values) <= ids
        assert features.modality.bit == MODALITIES.index(modality)
        total = sum(len(x) if features.modality.kind == "sequence" else 1 for x in values.values())
        dictionary = features.dictionary
        assert dictionary["position"].to_list() == list(range(features.modality.size))
        assert (dictionary["n_observed"] + dictionary["n_missing"] == total).all()
        assert dictionary["source_file"].unique().to_list() == [
            p.name for p in exports[name].iterdir() if p.name == dictionary["source_file"][0]
        ]


def test_all_formats_give_the_same_clips_labels_and_folds(exports: dict[str, Path]) -> None:
    whole = DATASET.cohort(exports["csd"], MosiOptions())
    spoken = DATASET.check(exports["csd"], MosiOptions()).observed["text"]
    with_words = Cohort(
        samples=whole.samples.filter(pl.col("sample_id").is_in(spoken.implode())),
        labels={k: v.filter(pl.col("sample_id").is_in(spoken.implode())) for k, v in whole.labels.items()},
        attrition=whole.attrition,
    )
    for name in FORMATS[1:]:
        # MAG-BERT leaves out clips without words.
        expected = with_words if name == "mag" else whole
        cohort = DATASET.cohort(exports[name], MosiOptions())
        assert cohort.samples.drop("start", "end").equals(expected.samples.drop("start", "end"))
        for task, label in expected.labels.items():
            assert cohort.labels[task].equals(label), task


def test_all_formats_give_the_same_words(exports: dict[str, Path]) -> None:
    # MMSA keeps the first 48 words, the others the last 50; the simulated pickles contain hashed words as text vectors.
    expected = read(exports["csd"], "text", text_encoder="hashing")
    same(read(exports["multibench"], "text"), expected)
    same(read(exports["mmsa_aligned"], "text", text_encoder="hashing"), expected)
    same(read(exports["mmsa_unaligned"], "text", text_encoder="hashing"), expected)
    for name in ("mag", "files"):
        same(read(exports[name], "text", text_encoder="hashing"), expected)
    same(read(exports["mult"], "text"), expected)
    bert = read(exports["mmsa_aligned"], "text")
    assert all(len(bert[k]) == min(len(expected[k]) + 2, 50) for k in expected)
    assert list(bert) == list(expected)


@pytest.mark.parametrize(("modality", "d"), [("audio", 5), ("vision", 20)])
def test_all_formats_give_the_same_frames(exports: dict[str, Path], modality: str, d: int) -> None:
    form = f"{modality}_form"
    steps = read(exports["csd"], modality, **{form: "steps"})
    same(read(exports["multibench"], modality), steps)
    same(read(exports["mmsa_aligned"], modality), {k: x[:48, :d] for k, x in steps.items()})
    # MAG-BERT has no clips without words; with one frame per step, they have a step in the others.
    spoken = DATASET.check(exports["csd"], MosiOptions()).observed["text"]
    same(read(exports["mag"], modality), {k: x for k, x in steps.items() if k in set(spoken)})
    frames = read(exports["csd"], modality, **{form: "raw"})
    same(read(exports["mmsa_unaligned"], modality), {k: x[:, :d] for k, x in frames.items()})
    same(read(exports["files"], modality), frames)
    # The only zero padding of MulT is in front, so that failed first frames are lost.
    mult = read(exports["mult"], modality)
    assert all(len(frames[k]) - len(x) <= 3 for k, x in mult.items())
    same(mult, {k: frames[k][-len(x) :] for k, x in mult.items()})
    collapsed = read(exports["csd"], modality, **{form: "collapse"})
    same(collapsed, {k: np.nanmean(x, axis=0) for k, x in frames.items()})


def test_text_forms(exports: dict[str, Path]) -> None:
    options = MosiOptions(text_encoder="hashing", max_steps=0)
    tokens = open_export(exports["csd"], options).tokens()
    ids = open_export(exports["csd"], options).clips["sample_id"].to_list()
    n_words = {i: len(t) for i, t in zip(ids, tokens, strict=True)}
    sequence = read(exports["csd"], "text", text_encoder="hashing", max_steps=0)
    assert {k: len(x) for k, x in sequence.items()} == {k: n for k, n in n_words.items() if n}
    assert list(n_words.values()).count(0) == 2
    sentence = read(exports["csd"], "text", text_encoder="hashing", text_form="sentence")
    for key, x in sentence.items():
        assert x.shape == (300,)
        mean = sequence[key].mean(axis=0)
        assert np.allclose(x, mean / np.linalg.norm(mean), atol=1e-5)
    counts = read(exports["csd"], "text", text_form="counts", text_features=64)
    assert {k: int(x.sum()) for k, x in counts.items()} == {k: n for k, n in n_words.items() if n}
    shorter = read(exports["csd"], "text", text_encoder="hashing", max_steps=3)
    assert all(np.array_equal(shorter[k], x[-3:]) for k, x in sequence.items())


def test_text_forms_of_word_vectors(exports: dict[str, Path]) -> None:
    steps = read(exports["multibench"], "text")
    same(read(exports["multibench"], "text", text_form="sentence"), {k: x.mean(axis=0) for k, x in steps.items()})
    counts = read(exports["mmsa_aligned"], "text", text_form="counts", text_features=64)
    same(counts, read(exports["csd"], "text", text_form="counts", text_features=64))


@pytest.mark.parametrize(
    ("name", "modality", "settings"),
    [
        ("multibench", "text", {"text_encoder": "hashing"}),
        ("multibench", "text", {"text_form": "counts"}),
        ("csd", "text", {"text_encoder": "export"}),
        ("csd", "text", {"text_encoder": "nonsense"}),
        ("csd", "text", {"text_encoder": "minilm", "text_form": "counts"}),
        ("mmsa_unaligned", "audio", {"audio_form": "steps"}),
        ("mmsa_aligned", "audio", {"audio_form": "raw"}),
        ("utterance", "audio", {"audio_form": "raw"}),
        ("utterance", "vision", {}),
        ("csd", "audio", {"audio_sequence": "nowhere.csd"}),
        ("csd", "text", {"text_sequence": "CMU_MOSI_COVAREP"}),
        ("csd", "audio", {"file": "aligned_50.pkl"}),
    ],
)
def test_options_that_the_export_cannot_satisfy_are_usage_errors(
    exports: dict[str, Path], name: str, modality: str, settings: dict[str, str]
) -> None:
    with pytest.raises(UsageError):
        read(exports[name], modality, **settings)
    if (name, modality) != ("utterance", "vision"):
        with pytest.raises(UsageError):
            DATASET.check(exports[name], MosiOptions(**settings))


def test_utterance_audio_is_one_vector_per_segment(exports: dict[str, Path]) -> None:
    audio = read(exports["utterance"], "audio")
    with h5py.File(exports["utterance"] / "CMU_MOSI_openSMILE_utterance.csd") as handle:
        data = handle["CMU_MOSI_openSMILE_utterance/data"]
        for video in data:
            for i, row in enumerate(data[video]["features"][()]):
                assert np.array_equal(audio[f"{video}_{i + 1}"], row)
    assert len(audio) == len(DATASET.cohort(exports["utterance"], MosiOptions()).samples)


# --- variants of .csd ------------------------------------------------------------------------------------------------


def rewritten(raw: Path, out: Path, change) -> Path:
    """Copy of a .csd export; `change(name, root, entries)` returns the new root name and entries of each file."""
    shutil.copytree(raw, out)
    for path in sorted(out.glob("*.csd")):
        with h5py.File(path) as handle:
            root = next(iter(handle))
            data = handle[root]["data"]
            entries = {k: (data[k]["features"][()], data[k]["intervals"][()]) for k in data}
        root, entries = change(path.stem, root, entries)
        with h5py.File(path, "w") as handle:
            for key, (features, intervals) in entries.items():
                handle[f"{root}/data/{key}/features"] = features
                handle[f"{root}/data/{key}/intervals"] = intervals
    return out


def test_the_root_group_may_have_any_name(exports: dict[str, Path], tmp_path: Path) -> None:
    raw = rewritten(exports["csd"], tmp_path / "raw", lambda name, root, entries: ("anything", entries))
    for modality in MODALITIES:
        same(read(raw, modality), read(exports["csd"], modality))


def test_features_do_not_depend_on_the_order_of_rows(exports: dict[str, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def shuffle(name, root, entries):
        if "Labels" in name:
            return root, entries
        orders = {k: rng.permutation(len(t)) for k, (_, t) in entries.items()}
        return root, {k: (x[orders[k]], t[orders[k]]) for k, (x, t) in entries.items()}

    raw = rewritten(exports["csd"], tmp_path / "raw", shuffle)
    for modality in MODALITIES:
        same(read(raw, modality), read(exports["csd"], modality))


def test_files_already_aligned_by_the_sdk(exports: dict[str, Path], tmp_path: Path) -> None:
    """Keys are `video[i]`: the segment of zero length is dropped, and words belong to their key."""
    options = MosiOptions(max_steps=0)
    sdk = open_export(exports["csd"], options)
    tokens = dict(zip(sdk.clips["sample_id"], sdk.tokens(), strict=True))
    clips = sdk.clips.rows(named=True)

    def align(name, root, entries):
        out = {}
        for clip in clips:
            key, i = f"{clip['subject_id']}[{clip['clip'] - 1}]", clip["clip"] - 1
            if clip["end"] <= clip["start"]:
                continue
            features, intervals = entries[clip["subject_id"]]
            if "Labels" in name:
                out[key] = features[i : i + 1], intervals[i : i + 1]
            elif "Words" in name and tokens[clip["sample_id"]]:
                words = np.array(tokens[clip["sample_id"]], dtype=np.bytes_)[:, None]
                out[key] = words, np.stack([np.arange(len(words)), np.arange(len(words)) + 1.0], axis=1)
            elif "Words" not in name:
                hit = (intervals[:, 0] < clip["end"] - 1e-3) & (intervals[:, 1] > clip["start"] + 1e-3)
                if hit.any():
                    out[key] = features[hit], intervals[hit]
        return root, out

    raw = rewritten(exports["csd"], tmp_path / "raw", align)
    expected = DATASET.cohort(exports["csd"], options).samples.filter(pl.col("end") > pl.col("start"))
    found = DATASET.cohort(raw, options).samples
    assert found.drop("start", "end").equals(expected.drop("start", "end"))
    same(read(raw, "text", max_steps=0), read(exports["csd"], "text", max_steps=0))
    for modality in ("audio", "vision"):
        same(
            read(raw, modality, **{f"{modality}_form": "raw"}),
            read(exports["csd"], modality, **{f"{modality}_form": "raw"}),
        )


def test_word_vectors_are_preferred_to_words(exports: dict[str, Path], tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(exports["csd"], raw)
    with (
        h5py.File(raw / "CMU_MOSI_TimestampedWords.csd") as words,
        h5py.File(raw / "CMU_MOSI_TimestampedWordVectors.csd", "w") as out,
    ):
        data = words["CMU_MOSI_TimestampedWords/data"]
        for video in data:
            text = data[video]["features"][()].ravel()
            x = np.array([[len(w), i + 1.0, 1.0] for i, w in enumerate(text)], dtype=np.float32)
            x[text == b"sp"] = 0
            out[f"glove_vectors/data/{video}/features"] = x
            out[f"glove_vectors/data/{video}/intervals"] = data[video]["intervals"][()]
    hashed = read(raw, "text", text_encoder="hashing")
    vectors = read(raw, "text")
    assert {k: len(x) for k, x in vectors.items()} == {k: len(x) for k, x in hashed.items()}
    assert all(x.shape[1] == 3 and (x[:, 2] == 1).all() and (np.diff(x[:, 1]) > 0).all() for x in vectors.values())
    same(read(raw, "audio"), read(exports["csd"], "audio"))


def test_the_preferred_sequence_is_read_unless_another_is_selected(exports: dict[str, Path], tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(exports["csd"], raw)
    shutil.copy(exports["utterance"] / "CMU_MOSI_openSMILE_utterance.csd", raw)
    checked = DATASET.check(raw, MosiOptions())
    name = "CMU_MOSI_openSMILE_utterance.csd"
    assert f"audio: CMU_MOSI_COVAREP.csd is read, the preferred release, and not {name}" in checked.notes
    assert checked.unused[name].endswith("--set audio_sequence=FILE selects another")
    assert raw / name not in checked.files
    same(read(raw, "audio"), read(exports["csd"], "audio"))
    selected = read(raw, "audio", audio_sequence="CMU_MOSI_openSMILE_utterance")
    same(selected, read(exports["utterance"], "audio"))


def test_videos_outside_the_folds_are_excluded_with_a_reason(exports: dict[str, Path], tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(exports["csd"], raw)
    whole = DATASET.cohort(raw, MosiOptions())
    video = whole.samples.filter(fold="train")["subject_id"][0]
    folds = raw / "cmu_mosi_std_folds.py"
    folds.write_text(folds.read_text().replace(f"'{video}'", "'somewhereelse'"))
    cohort = DATASET.cohort(raw, MosiOptions())
    assert video not in cohort.samples["subject_id"].to_list()
    n_out = (whole.samples["subject_id"] == video).sum()
    assert cohort.attrition.rows()[-1] == (
        1,
        "video in none of the three fold lists",
        len(whole.samples),
        len(whole.samples) - n_out,
    )
    notes = DATASET.check(raw, MosiOptions()).notes
    assert f"cmu_mosi_std_folds.py: 1 of 6 labelled videos are absent (16.7%): {video}" in notes
    assert "cmu_mosi_std_folds.py: 1 of 6 videos have no labels (16.7%): somewhereelse" in notes
    with pytest.raises(DataError, match=f"1 of 6 labelled videos.*{video}.*max_unmatched"):
        DATASET.check(raw, MosiOptions(max_unmatched=0.1))


def test_the_overlap_rule_adds_the_previous_word_and_loses_the_last(exports: dict[str, Path]) -> None:
    onset = open_export(exports["csd"], MosiOptions()).tokens()
    overlap = open_export(exports["csd"], MosiOptions(word_rule="overlap")).tokens()
    inside = [(a, b) for a, b in zip(onset, overlap, strict=True) if a]
    assert sum(a[:-1] == b[1:] for a, b in inside) > 0.9 * len(inside)
    assert all(a != b for a, b in inside)


def test_a_missing_folder_is_a_reported_error(exports: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(MrpipeError):
        DATASET.check(tmp_path / "nowhere", MosiOptions())
