"""`mrpipe analyse`: routing by combination, gradients, and embeddings before and after retrieval."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from moe_retriever.evaluation import embedding, routing
from moe_retriever.plots import plots
from mrpipe import Store
from mrpipe.cli.main import main
from mrpipe.errors import UsageError
from tests.moe_retriever import synthetic

OPTIONS = ["epochs=3", "hidden=16", "tokens=2", "heads=2", "encoder_hidden=8", "gradient_rows=10"]
VIEW = ("table", "series", "genotype")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the required number of samples, because the toy store has few per combination."""
    monkeypatch.setattr(embedding, "FEWEST_SAMPLES", 5)


def trained(store: Store, out: Path, method: str) -> Path:
    more = ["warmup=1", "n_experts=2", "n_shared=1", "expert_ffn=8", "top_k=2"] if method == "moe_retriever" else []
    command = [
        "train",
        "--store",
        str(store.path),
        "--out",
        str(out),
        "--method",
        method,
        "--quiet",
        "--modalities",
        *VIEW,
        "--no-test",
        "--set",
        *OPTIONS,
        *more,
    ]
    assert main(command) == 0
    return out


@pytest.fixture(scope="module")
def runs(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    return {m: trained(store, root / m, m) for m in ("moe_retriever", "zero_fill", "majority")}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.*"))}


@pytest.mark.usefixtures("few")
def test_one_run_gives_all_figures_reproducibly(runs: dict[str, Path], store: Store, tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        command = [
            "analyse",
            "--run",
            str(runs["moe_retriever"]),
            "--store",
            str(store.path),
            "--out",
            str(tmp_path / name),
            "--part",
            "train",
        ]
        assert main(command) == 0
        found.append(files(tmp_path / name))
    assert found[0] == found[1]
    # Rerun for a method that does not route: its folder has no figures of the earlier run.
    command[2] = str(runs["zero_fill"])
    assert main(command) == 0
    assert set(files(tmp_path / "b")) == {"gradients.csv", "gradients.svg", "gradients.png"}
    pictures = {
        f"{stem}.{kind}"
        for stem in ("expert_selection", "combination_shares", "gradients", "embedding")
        for kind in ("svg", "png")
    }
    tables = {
        "visits.parquet",
        "expert_selection.csv",
        "combination_shares.csv",
        "gradients.csv",
        "embedding.parquet",
        "closeness.csv",
    }
    assert set(found[0]) == pictures | tables
    ids = store.samples().collect()["sample_id"].to_list()
    assert not any(i.encode() in content for content in found[0].values() for i in ids)


@pytest.mark.usefixtures("few")
def test_analyses_that_do_not_apply_are_reported_and_the_others_written(
    runs: dict[str, Path], store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["analyse", "--store", str(store.path), "--out", str(tmp_path / "out"), "--run"]
    assert main([*base, *map(str, runs.values()), "--part", "train"]) == 0
    text = capsys.readouterr().out
    for name in ("zero_fill", "majority"):
        assert f"skipped: {name}, routing: {name} does not route tokens" in text
        assert f"skipped: {name}, embedding: {name} does not retrieve" in text
    assert "skipped: majority, gradients" in text
    assert "skipped: moe_retriever" not in text
    assert (tmp_path / "out" / "zero_fill" / "gradients.csv").is_file()
    assert (tmp_path / "out" / "gradients.svg").is_file()
    base[4] = str(tmp_path / "none")
    assert main([*base, str(runs["majority"])]) == 2
    assert "no analysis is possible" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert main([*base, str(runs["moe_retriever"]), "--what", "embedding", "--combination", "table+series"]) == 2
    assert "choose a combination that lacks a modality" in capsys.readouterr().err


def test_visits_are_attributed_to_the_sample_of_the_token() -> None:
    """Training samples are complete and test samples lack m2, so supporting tokens have the full combination."""
    observed = np.ones((40, 3), dtype=bool)
    observed[32:, 2] = False
    data = synthetic.make(observed)
    method = synthetic.trained_on(data, synthetic.config(warmup=0, n_intra=3))
    test = data.rows("test")
    visits = routing.visits_by_combination(method, data, test)
    assert visits is not None
    items = dict(visits.select("combination", "role", "n_items").unique().rows_by_key("combination", unique=True))
    assert items == {"m0+m1": ("own", 2 * len(test)), "m0+m1+m2": ("supporting", 3 * len(test))}
    # Each of the two tokens of an item visits two experts, which are shared or in the pool of the missing modality.
    assert visits["visits"].sum() == 5 * len(test) * 2 * 2
    assert set(visits.filter(pl.col("visits") > 0)["pool"]) <= {"m2", "shared"}
    selection, shares = routing.expert_selection(visits), routing.combination_shares(visits)
    np.testing.assert_allclose(selection.group_by("combination").agg(pl.col("ratio").sum())["ratio"], 1)
    np.testing.assert_allclose(shares.group_by("expert").agg(pl.col("ratio").sum())["ratio"], 1)
    # Both are the same table of counts, normalised along different axes.
    both = selection.join(shares, on=["combination", "expert"], suffix="_inverse")
    total = visits.group_by("expert").agg(all=pl.col("visits").sum())
    counts = both.join(total, on="expert")
    np.testing.assert_allclose(counts["ratio_inverse"] * counts["all"], counts["visits"])
    assert routing.expert_names(["a", "a", "b", "shared"]) == ["a_1", "a_2", "b_1", "shared_1"]
    assert visits.filter(expert=4)["name"].to_list() == ["m1_2"] * 2


def test_visits_agree_with_the_routing_of_the_slots() -> None:
    """Reference: the shares per slot that `predict` collects."""
    data = synthetic.make(synthetic.random_masks(60, 3, 1))
    method = synthetic.trained_on(data, synthetic.config(warmup=0))
    rows = data.rows("test")
    visits = routing.visits_by_combination(method, data, rows)
    assert visits is not None
    used = visits.group_by("expert", maintain_order=True).agg(pl.col("visits").sum()).sort("expert")["visits"]
    by_slot = torch.zeros(len(used), dtype=torch.float64)
    out = method.eval()(data.batch(rows, "evaluation"), detail=True).diagnostics
    draws = out["support"]
    n_items = draws.drawn + data.observed[rows].sum(axis=1)[draws.sample]
    items_of = {(int(s), int(t)): n for s, t, n in zip(rows[draws.sample], draws.target, n_items, strict=True)}
    slots = out["routing"]
    for sample, target, share in zip(slots["sample"], slots["target"], slots["share"], strict=True):
        by_slot += torch.from_numpy(share) * items_of[int(sample), int(target)] * 2 * 2
    np.testing.assert_allclose(by_slot, used.to_numpy(), rtol=1e-6)


def test_before_equals_the_masked_fusion_and_after_the_prediction() -> None:
    data = synthetic.make(synthetic.random_masks(120, 3, 0))
    method = synthetic.trained_on(data, synthetic.config(warmup=0))
    rows, combination = embedding.choose(data, data.rows("train"), None, 0)
    assert combination.count("+") == 1
    assert set(data.combination(data.observed[rows])) == {combination}
    found = embedding.before_and_after(method, data, rows, combination)
    assert found.missing == tuple({"m0", "m1", "m2"} - set(combination.split("+")))
    assert found.before.shape == found.after.shape == (len(rows), 3 * 16)
    m = int(found.missing[0][1:])
    assert (found.before[:, 16 * m : 16 * (m + 1)] == 0).all()
    assert (found.after[:, 16 * m : 16 * (m + 1)] != 0).any()
    z = method.encode_slots(data.batch(rows, "x"))
    masked = method.fusion(z, torch.from_numpy(data.observed[rows]))[1]  # type: ignore[operator]
    np.testing.assert_allclose(found.before, masked.detach().numpy(), atol=1e-5)
    logits = method(data.batch(rows, "evaluation")).logits
    head = method.fusion.head  # type: ignore[union-attr]
    again = head(torch.from_numpy(found.after).float())  # type: ignore[operator]
    torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-5)


def test_closeness_of_samples_of_one_class() -> None:
    x = np.array([[1.0, 0], [0, 1], [1, 1], [2, 2]])
    label = np.array([0, 0, 1, 1])
    found = embedding.closeness(embedding.Embeddings("a", ("b",), x, x[:, ::-1].copy(), label, ("no", "yes", "never")))
    before = found.filter(stage="before")
    np.testing.assert_allclose(before["cosine"].to_list()[:2], [0.0, 1.0], atol=1e-12)
    assert before["cosine"][2] is None
    assert before["cosine"][3] == pytest.approx(0.5)
    assert found.filter(stage="after")["silhouette"][3] == pytest.approx(before["silhouette"][3])


def test_complete_samples_and_too_few_samples_are_usage_errors() -> None:
    whole = synthetic.make(np.ones((30, 2), dtype=bool))
    with pytest.raises(UsageError, match="no sample of this split lacks"):
        embedding.choose(whole, whole.rows("train"), None, 0)
    some = synthetic.make(np.concatenate([np.ones((28, 2), dtype=bool), np.array([[True, False]] * 2)]))
    with pytest.raises(UsageError, match="at least 10"):
        embedding.choose(some, some.rows("test"), "m0", 0)


def test_many_pairs_and_combinations_are_summarised() -> None:
    names = [f"m{i}" for i in range(6)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    rows = [
        {"epoch": epoch, "kind": kind, "first": a, "second": b, "n": 5, "cosine": 0.1, "sd": None}
        for epoch in (1, 2)
        for kind in plots.GRADIENT_KINDS
        for a, b in pairs
    ]
    figure = plots.gradient_similarity({"run": pl.DataFrame(rows, infer_schema_length=None)})
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["range of 15 pairs", "mean"]
    combinations = [f"c{i:02d}" for i in range(12)]
    table = pl.DataFrame({"combination": combinations, "expert": 0, "name": "m0_1", "visits": range(12, 0, -1)})
    figure = plots.combination_shares(table.with_columns(ratio=pl.col("visits") / pl.col("visits").sum()))
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels == [*combinations[:7], "others"]
    many = pl.concat([table.with_columns(combination=pl.lit(f"x{i}") + pl.col("combination")) for i in range(3)])
    figure = plots.expert_selection(many.with_columns(ratio=pl.lit(1.0)))
    assert len(figure.axes[0].get_yticklabels()) == plots.MOST_ROWS
    assert "12 rarer combinations" in figure.axes[0].get_title(loc="right")


def test_stacked_shares_add_up_to_100_percent() -> None:
    table = pl.DataFrame(
        {"combination": ["a", "b"], "expert": 0, "name": "a_1", "visits": [3, 1], "ratio": [0.75, 0.25]}
    )
    figure = plots.combination_shares(table)
    assert sum(p.get_height() for p in figure.axes[0].patches) == pytest.approx(100)  # type: ignore[attr-defined]
