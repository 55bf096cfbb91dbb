"""Studies from the command line: one table, resumed, extended, with failures as rows,
ranks and tests as scipy and Demšar have them."""
import json

import numpy as np
import pandas as pd
import pytest
from forked import thesis_ad
from hypothesis import given, settings as budget, strategies as st
from scipy import stats

from thesis_ad import study as module
from thesis_ad.evaluation import protocol
from thesis_ad.models.detector import methods
from thesis_ad.settings import UserError, get_profile, repository_root
from thesis_ad.study import (RESULT_COLUMNS, combinations, friedman, holm, nemenyi, parse_study, plan, plan_lines,
    ranks, read_results, read_study, run_study, summary)

TEXT = ("profile: smoke\ndatasets: [{folder: parts, categories: all}]\ndetectors: [padim, global_knn]\nseeds: "
    "[0]\nsettings: {small: {size: [64, 64], replicates: 50}}\n")
QUIET = {"say": lambda line: None}


@pytest.fixture
def parts(mvtec_folder, tmp_path, monkeypatch):
    """A study file beside a folder of two categories, one of which has no test images, with a cache of its own:
    other tests work with the same images."""
    monkeypatch.setenv("THESIS_AD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "parts").mkdir()
    mvtec_folder.rename(tmp_path / "parts/bottle")
    (tmp_path / "parts/empty").mkdir()
    (tmp_path / "study.yaml").write_text(TEXT)
    return tmp_path / "study.yaml"


def command(*arguments): return thesis_ad("study", *arguments)


def test_from_the_command_line(parts):
    "Dry run, run with a failed category, the same again from the cache, another seed, and every byte as before."
    said = command(parts, "--dry-run")
    assert (said.returncode == 0 and "4 combinations: 2 to run, 2 fails" in said.stdout
        and not parts.with_suffix("").exists()), said.stdout + said.stderr
    said = command(parts, "--workers", 2)
    assert (said.returncode == 1 and len(said.stderr.strip().splitlines()) == 2 and "empty" in said.stderr
        and "Traceback" not in said.stderr), said.stderr
    folder = parts.with_suffix("")
    first = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    assert set(first) == {"results.csv", "summary.csv", "ranks.csv", "significance.csv", "costs.csv"}
    results = read_results(folder)
    assert list(results) == RESULT_COLUMNS and set(results.category) == {"bottle", "empty"}
    assert (results[results.category == "empty"].error != "").all()
    assert (results[results.category == "bottle"].error == "").all()
    assert command(parts, "--workers", 1, "-o", folder.with_name("again")).returncode == 1
    assert {path.name: path.read_bytes()
        for path in folder.with_name("again").glob("*.csv")} == first, "a second run is read from the cache"
    parts.write_text(TEXT.replace("seeds: [0]", "seeds: [0, 1]"))
    said = command(parts, "--dry-run")
    assert "2 finished, 1 to run, 3 fails" in said.stdout and "known from itself (1)" in said.stdout, said.stdout
    assert command(parts, "--workers", 1).returncode == 1
    more = read_results(folder)
    assert more[(more.seed == 0)].reset_index(drop=True).equals(results)
    assert set(more[more.seed == 1].detector) == {"padim"}
    spread = pd.read_csv(folder / "summary.csv").set_index(["detector", "metric"]).loc[("padim", "image_auroc")]
    values = more[(more.detector == "padim") & (more.metric == "image_auroc")].value
    assert spread.seeds == 2 and np.allclose([spread["mean"], spread.sd_seeds], [values.mean(), values.std(ddof=1)])


def test_only_what_is_missing_is_computed(parts, monkeypatch, tmp_path):
    fits = []
    original = protocol.create
    def counted(*arguments, **settings):
        detector = original(*arguments, **settings)
        fit = detector.fit
        detector.fit = lambda *data: (fits.append(detector.method), fit(*data))[1]
        return detector
    monkeypatch.setattr(protocol, "create", counted)
    text = TEXT.replace("categories: all", "categories: [bottle]")
    run_study(parse_study(text, beside=parts.parent), tmp_path / "a", **QUIET)
    assert sorted(fits) == ["global_knn", "padim"]
    run_study(parse_study(text.replace("[0]", "[0, 7]"), beside=parts.parent), tmp_path / "a", **QUIET)
    assert sorted(fits) == ["global_knn", "padim", "padim"], "an added seed ran more than that seed"
    run_study(parse_study(text.replace("[padim, global_knn]", "[mine: {detector: padim, channels: 5}, global_knn]"),
        beside=parts.parent), tmp_path / "b", **QUIET)
    assert sorted(fits) == ["global_knn", "padim", "padim",
        "padim"], "a detector that another study has fitted was fitted again"


def test_rows_of_another_machine_are_taken_where_their_key_is_that_of_a_combination(parts, tmp_path, monkeypatch):
    "The other machine has another cache; other settings make another key; a table without keys is refused."
    text = TEXT.replace("categories: all", "categories: [bottle]")
    def run_here(name, text, **more):
        monkeypatch.setenv("THESIS_AD_CACHE", str(tmp_path / name / "cache"))
        return run_study(parse_study(text, beside=parts.parent), tmp_path / name, **QUIET, **more)
    run_here("there", text)
    run_here("here", text, earlier=[tmp_path / "there"])
    assert not (tmp_path / "here/cache/detectors").exists(), "something was fitted again"
    for name in ("results", "summary", "ranks", "significance"):
        assert ((tmp_path / f"here/{name}.csv").read_bytes() == (tmp_path / f"there/{name}.csv").read_bytes()), name
    other = run_here("other", text.replace("replicates: 50", "replicates: 60"), earlier=[tmp_path / "there"])
    assert not set(other.key) & set(read_results(tmp_path / "there").key)
    parts.write_text(text)
    said = command(parts, "--dry-run", "--from", tmp_path / "there")
    assert "2 combinations: 2 finished" in said.stdout and "earlier table" in said.stdout, said.stdout + said.stderr
    (tmp_path / "old.csv").write_text("dataset,detector,value\nbottle,padim,1\n")
    said = command(parts, "--from", tmp_path / "old.csv")
    assert said.returncode == 2 and "lacks the columns category" in said.stderr, said.stderr


def test_a_damaged_cache_is_made_again_and_changes_no_number(parts, tmp_path):
    study = parse_study(TEXT.replace("categories: all", "categories: [bottle]"), beside=parts.parent)
    run_study(study, tmp_path / "a", **QUIET)
    before = (tmp_path / "a/results.csv").read_bytes()
    for number, path in enumerate(sorted((tmp_path / "cache").rglob("*"))):
        if not path.is_file() or path.suffix == ".lock": continue
        data = bytearray(path.read_bytes())
        if number % 3 == 0 and data: data[len(data) // 2] ^= 4; path.write_bytes(data)
        elif number % 3 == 1: path.write_bytes(data[:len(data) // 2])
        else: path.unlink()
    run_study(study, tmp_path / "b", **QUIET)
    assert (tmp_path / "b/results.csv").read_bytes() == before


def test_a_cost_that_cannot_be_kept_stops_no_study(parts, tmp_path, monkeypatch):
    def full(path, facts): raise UserError(f"no space left to write {path}")
    monkeypatch.setattr(module, "write_json", full)
    parts.write_text(TEXT.replace("categories: all", "categories: [bottle]"))
    results = run_study(read_study(parts), tmp_path / "out", **QUIET)
    assert (results.error == "").all() and not (tmp_path / "cache/costs").exists()


def test_what_a_past_run_cost_is_what_the_next_one_is_expected_to(parts, tmp_path):
    study = parse_study(TEXT.replace("categories: all", "categories: [bottle]"), beside=parts.parent)
    assert "no past run" in list(plan_lines(plan(combinations(study))))[1]
    run_study(study, tmp_path / "a", **QUIET)
    costs = pd.read_csv(tmp_path / "a/costs.csv").set_index("detector")
    assert (costs.memory_mib > 50).all() and (costs.fit_seconds > 0).all()
    again = plan(combinations(parse_study(TEXT.replace("categories: all", "categories: [bottle]").replace("[0]", "[3]"),
        beside=parts.parent))).set_index("detector")
    assert (again.state.to_dict() == {"padim": "to run", "global_knn": "finished"}
        or again.state.to_dict() == {"padim": "to run", "global_knn": "to run"})
    assert again.known_from["padim"] == "itself"
    assert np.isclose(again.seconds["padim"], costs.fit_seconds["padim"] + costs.evaluate_seconds["padim"])
    assert again.memory_mib["padim"] == costs.memory_mib["padim"]


@pytest.mark.parametrize("text, said", [
    ("datasets: [a]\ndetectors: [padimm]", "padimm"), ("datasets: [a]\ndetectors: [x: {detector: padim, chanels: 3}]",
        "chanels"), ("datasets: []\ndetectors: [padim]", "datasets"),
    ("datasets: [a]\ndetectors: [padim]\nsettings: {x: {patchcore: {coreset: 1}}}", "patchcore"),
    ("datasets: [a]\ndetectors: [padim]\nseeds: [a]", "seeds"), ("datasets: [a", "YAML"),
    ("datasets: [a]\ndetectors: [padim]\nseeds: [1, 1]", "twice"),
    ("- a", "mapping"), ("datasets: [{folder: nowhere}]\ndetectors: [padim]", "nowhere"),
    ("profile: mini\ndatasets: [a]\ndetectors: [padim]", "mini")])
def test_a_mistake_in_the_file_is_one_sentence_before_any_work(text, said, tmp_path):
    with pytest.raises(UserError, match=said) as error: combinations(parse_study(text, beside=tmp_path))
    assert "\n" not in str(error.value)


def test_the_example_of_the_chapter_is_a_study(tmp_path):
    chapter = "".join("".join(cell["source"]) for cell in json.loads((repository_root()
        / "nbs/81_study.ipynb").read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "markdown")
    for name in ("bottle", "screw"): (tmp_path / "data/mvtec" / name).mkdir(parents=True)
    text = chapter.split("```yaml\n")[1].split("```")[0].replace("[0, 1, 2]", "[0]")     # one seed: opens no dataset
    assert len(combinations(parse_study(text, beside=tmp_path))) == 3 * 3 * 2


def test_yaml_cannot_run_code(tmp_path):
    (tmp_path / "study.yaml").write_text("datasets: !!python/object/apply:pathlib.Path.touch "
        f"[!!python/object/apply:pathlib.Path ['{tmp_path}/ran']]\ndetectors: [padim]")
    with pytest.raises(UserError, match="not YAML"): read_study(tmp_path / "study.yaml")
    assert not (tmp_path / "ran").exists()


def test_profile_paper_is_a_study(monkeypatch):
    "The study file asks for exactly what reproduction fits, under the same names in the cache."
    study, profile = read_study(repository_root() / "benchmarks/studies/paper.yaml"), get_profile("paper")
    assert {one[1] for one in study.detectors} == {*methods(), *protocol.VARIANTS} and study.seeds == profile.seeds
    assert tuple(one[2] for one in study.datasets) == profile.datasets
    enhanced = type("Data", (), {"enhance": True})
    for place in (protocol, module): monkeypatch.setattr(place, "dataset_for", lambda name, profile: enhanced)
    mine = {(one.task.dataset, one.task.method, one.task.seed) for one in combinations(study)}
    assert mine == {(task.dataset, task.method, task.seed)
        for task in protocol.tasks_for(profile, [*methods(), *protocol.VARIANTS])}
    one = combinations(study)[0].task.profile
    assert {name: value for name, value in vars(one).items() if name != "seeds"} == {name: value
        for name, value in vars(profile).items() if name != "seeds"}


# ---- ranks ----

def table(values, names=None):
    "A results table of image AUROCs [N, k]."
    return pd.DataFrame([(f"d{i}", "", f"m{j}", "base", 0, "image_auroc", value, np.nan, np.nan, 5, 5, "", "")
        for i, row in enumerate(values) for j, value in enumerate(row)], columns=RESULT_COLUMNS)


@budget(max_examples=12, deadline=None)                # an example takes seconds: the studentised range
@given(st.integers(3, 12), st.integers(3, 6), st.integers(0, 10_000))
def test_ranks_and_p_values_are_those_of_scipy_and_of_the_formula(n, k, seed):
    values = np.random.default_rng(seed).integers(50, 100, (n, k)) / 100          # with ties
    means, pairs = ranks(table(values))
    ranked = np.array([stats.rankdata(-row) for row in values])
    by_name = means.set_index("detector")
    assert np.allclose([by_name.mean_rank[f"m{j}"] for j in range(k)], ranked.mean(0)) and (by_name.datasets == n).all()
    if not (ranked == ranked[:, :1]).all():
        assert np.allclose(by_name.p_friedman, stats.friedmanchisquare(*values.T).pvalue)
    if len(np.unique(values)) == n * k:
        chi = 12 * n / (k * (k + 1)) * ((ranked.mean(0) ** 2).sum() - k * (k + 1) ** 2 / 4)
        assert np.isclose(by_name.p_friedman.iloc[0], stats.chi2.sf(chi, k - 1))
    assert ((pairs.p_wilcoxon_holm >= pairs.p_wilcoxon - 1e-12) & (pairs.p_wilcoxon_holm <= 1)).all()
    assert len(pairs) == k * (k - 1) / 2
    wider = pairs.assign(wide=pairs.rank_difference.abs()).sort_values("wide")
    assert (np.diff(wider.p_nemenyi) <= 1e-12).all(), "a larger difference in rank is less likely by chance"


def test_friedman_keeps_its_level_and_nemenyi_does_not_exceed_it():
    generator = np.random.default_rng(0)
    ranked = [np.array([generator.permutation(4) + 1.0 for _ in range(15)]) for _ in range(1000)]
    assert 0.03 < np.mean([friedman(one) < 0.05 for one in ranked]) < 0.07
    assert np.mean([nemenyi(np.ptp(one.mean(0)), 4, 15) < 0.05 for one in ranked]) < 0.06


def test_holm_is_step_down():
    assert np.allclose(holm([0.001, 0.02, 0.03, 0.9]), [0.004, 0.06, 0.06, 0.9]) and list(holm([])) == []


def test_a_lower_false_negative_rate_is_the_better_rank():
    errors = table([[0.1, 0.2], [0.3, 0.4], [0.0, 0.5]]).assign(metric="fnr_at_fpr5")
    assert ranks(errors)[0].detector.tolist() == ["m0", "m1"]


def test_a_single_dataset_has_ranks_and_no_p_values():
    means, pairs = ranks(table([[0.9, 0.8, 0.7]]))
    assert means.mean_rank.tolist() == [1, 2, 3] and means.p_friedman.isna().all()
    assert pairs[["p_nemenyi", "p_wilcoxon", "p_wilcoxon_holm"]].isna().all(axis=None)
    assert len(summary(table([[0.9]]))) == 1
