"""What lies beneath the tables: equal runs are equal, arms differ in their loss alone."""

import json
import math
import os
import shlex
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from benchmarks import common
from benchmarks.tables import report, runs
from benchmarks.tables.__main__ import options, parser
from benchmarks.tables.data import ImageSet, images
from benchmarks.tables.runs import Given, Job, parts
from benchmarks.tables.specs import BUDGETS, TABLES, averaging, encoder_study, reduced
from benchmarks.tables.store import Store, step_seconds
from dckd_losses.weights import COMPACT
from examples.restoration import networks
from examples.restoration.data.images import photographs, write_png
from examples.restoration.recipe import SMALL_SR, Recipe
from examples.restoration.training.console import StoppedError
from examples.restoration.training.loop import train

RECIPE = Recipe(iterations=4, batch_size=2, crop=8)


@pytest.fixture
def store(tmp_path, accelerator):
    return Store(tmp_path, accelerator())


def make(method, settings=None, **changes):
    """A run of a few steps, from a teacher that has taken a few itself."""
    block = reduced(TABLES["table5"])
    facts = {
        "block": block,
        "network": "tiny",
        "method": method,
        "settings": runs.settings_of(method, settings or {}, RECIPE, "tiny", 2),
        "recipe": RECIPE,
        "seed": 0,
        "images": images("smoke", "sr", 2, ()),
        "encoder": "compact",
        "device": "cpu",
    }
    known = dict(settings={}, seed=3, method="scratch", teacher=None, network="small")
    teacher = Job(**{**facts, **known})
    return teacher, Job(**{**facts, "teacher": teacher, **changes})


def part_of(table, **said):
    """The only part of a small command line."""
    args = options(parser().parse_args([table, "--budget", "smoke"]))
    vars(args).update(said)
    (part,) = parts(encoder_study(args.encoders) if args.encoders else TABLES[table], args, "cpu")
    return part


def weights(store, job):
    return load_file(store.folder(job) / "student.safetensors")


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_runs_of_a_seed_begin_alike_and_see_the_same_crops(store):
    teacher, one = make("logits")
    _, other = make("dckd")
    _, later = make("dckd", seed=1)
    store.complete([teacher])
    network = store.network(teacher)
    begun = [
        job.start(store.folder(job), store.accelerator, network)[0] for job in (one, other, later)
    ]
    first, second, third = (run.student.state_dict() for run in begun)
    assert same(first, second) and not same(first, third)
    crops = [torch.cat([x.flatten() for item in run.crops for x in item]) for run in begun]
    assert torch.equal(crops[0], crops[1]) and not torch.equal(crops[0], crops[2])


@pytest.mark.slow
@pytest.mark.parametrize("every", [{}, {"every": 2, "half": True, "history": "average"}])
def test_stopped_runs_go_on_to_the_same_weights(every, tmp_path, accelerator, monkeypatch):
    straight, stopped = (Store(tmp_path / name, accelerator()) for name in ("one", "two"))
    for store in (straight, stopped):
        (store.root).mkdir()
    recipe = replace(RECIPE, ema=0.5 if every else None)
    teacher, job = make("dckd", {"interval": 1, **every}, recipe=recipe)
    straight.complete([teacher, job])
    stopped.complete([teacher])
    seen, validate = [], "benchmarks.tables.runs.mean_psnr"

    def stop(model, **known):
        seen.append(model)
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)
        return 30.0

    with monkeypatch.context() as patch:
        patch.setattr(validate, stop)
        with pytest.raises(StoppedError):
            stopped.complete([job])
    assert 0 < stopped.steps_left(job) < RECIPE.iterations
    assert stopped.result(job) is None
    stopped.complete([job])
    assert same(weights(stopped, job), weights(straight, job))
    assert stopped.steps_left(job) == 0


@pytest.mark.slow
def test_a_moving_average_is_kept_beside_the_same_weights(store):
    """And a run that has it is trained once, whichever of the two is scored."""
    recipe = replace(RECIPE, ema=0.5)
    teacher, plain = make("dckd")
    _, average = make("dckd", recipe=recipe)
    raw = replace(average, raw=True)
    store.complete([teacher, plain, average])
    assert raw.identity == average.identity != plain.identity
    assert store.result(raw) is not None
    expected = store.network(plain).state_dict()
    assert same(store.network(raw).state_dict(), expected)
    assert not same(store.network(average).state_dict(), expected)
    scores = [store.scores(j, j.images.tests[0], "sr", 2) for j in (plain, raw, average)]
    assert scores[0] == scores[1] != scores[2]


def test_a_teacher_of_own_code_is_known_by_weights_and_code(tmp_path):
    weights, code = tmp_path / "weights.pth", tmp_path / "net.py"
    line = "from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self, width=2):"
    line += "\n        super().__init__(nn.Conv2d(3, width, 1), nn.Conv2d(width, 3, 1))\n"
    code.write_text(line)
    torch.save(networks.build(f"{code}:Net", 1).state_dict(), weights)
    given = Given(str(weights), 1, (f"{code}:Net",))
    assert not given.network().training
    elsewhere = tmp_path / "elsewhere.py"
    elsewhere.write_text(line)
    assert Given(str(weights), 1, (f"{elsewhere}:Net",)).identity == given.identity
    elsewhere.write_text(line + "# another\n")
    changed = Given(str(weights), 1, (f"{elsewhere}:Net",)).identity
    other = Given(str(weights), 1, (f"{code}:Net", "width=2")).identity
    assert len({given.identity, changed, other}) == 3
    wrong = Given(str(weights), 1, (f"{code}:Net", "width=3"))
    with pytest.raises(ValueError, match="another network, of 17 values"):
        wrong.network()


def test_sets_are_the_budgets_or_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("DCKD_DATA", str(tmp_path))
    image = photographs("held_out")["chelsea"][100:148, 100:148]
    for name in ("sr/Own/HR", "else/where"):
        write_png(image, tmp_path / name / "cat.png")
    said = {"student": "tiny", "seeds": (0,), "arms": ("Logits",)}
    usual = part_of("evidence", **said)
    other = part_of("evidence", sets=("Own", "photographs", str(tmp_path / "else/where")), **said)
    assert [images.name for images in other.sets] == ["Own", "photographs", "where"]
    assert other.sets[2].pairs[0].lq.shape == (24, 24, 3)
    assert other.arms["Logits"][0].identity == usual.arms["Logits"][0].identity
    other = part_of("evidence", development_set="Own", development=True, **said)
    assert [images.name for images in other.sets] == ["Own"] == [other.images.development.name]
    assert other.arms["Logits"][0].identity != usual.arms["Logits"][0].identity  # another curve
    with pytest.raises(ValueError, match=r"got set Nowhere, no folder Nowhere or .*photographs"):
        part_of("evidence", sets=("Nowhere",), **said)


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_damaged_result_is_named(store, content):
    job = make("logits", teacher=None)[1]
    store.folder(job).mkdir(parents=True)
    (store.folder(job) / "result.json").write_text(content)
    with pytest.raises(ValueError, match=r"result\.json: no "):
        store.complete([job])


@pytest.mark.slow
def test_what_another_process_trains_comes_last(store):
    """And is then taken over where that process has left it."""
    teacher, busy = make("logits")
    _, free = make("logits", seed=1)
    store.complete([teacher])
    store.folder(busy).mkdir()
    began = threading.Event()

    def leave_when_the_rest_is_done():
        with FileLock(store.folder(busy) / ".lock"):
            began.set()
            while store.result(free) is None:
                time.sleep(0.01)

    thread = threading.Thread(target=leave_when_the_rest_is_done, daemon=True)
    thread.start()
    assert began.wait(10)
    store.complete([busy, free])
    thread.join(10)
    assert store.result(busy) is not None and store.result(free) is not None


def test_identity_follows_from_what_determines_the_weights():
    _, job = make("dckd")
    _, same_job = make("dckd", {"dcr_weight": 0.1})  # the default, said
    assert job.identity == same_job.identity
    settings = [{"dcr_weight": 0.2}, {"balance": 0.3}]
    changes = [
        {"seed": 1}, {"encoder": None}, {"device": "cuda"}, {"network": "small"},
        {"teacher": make("logits")[1]}, {"recipe": replace(RECIPE, iterations=5)},
    ]  # fmt: skip
    others = [make("dckd_star"), *(make("dckd", each) for each in settings)]
    others += [make("dckd", **each) for each in changes]
    assert len({job.identity, *(other.identity for _, other in others)}) == 1 + len(others)
    _, logits = make("logits")
    _, other_encoder = make("logits", encoder=None)
    assert logits.identity == other_encoder.identity  # it has none


def test_identity_follows_from_an_encoders_content(tmp_path, monkeypatch):
    job, copied = make("dckd")[1], tmp_path / "copied.safetensors"
    copied.write_bytes(COMPACT.read_bytes())
    assert make("dckd", encoder=str(copied))[1].identity == job.identity
    copied.write_bytes(b"trained anew")
    assert make("dckd", encoder=str(copied))[1].identity != job.identity
    monkeypatch.setattr("benchmarks.tables.runs.COMPACT", copied)  # a later version's
    assert make("dckd")[1].identity != job.identity


@pytest.mark.parametrize(
    ("table", "arm", "expected"),
    [
        ("table7", "DMM 0.01", {"dcr_weight": 0.02, "dmm_weight": 0.01, "form": "cross_entropy"}),
        ("table7", "DMM 0.01", {"balance": None}),
        ("table7", "released DMM 0.01", {"dmm_weight": 0.01, "form": "released"}),
        ("table5", "DMM", {"dcr_weight": 0.0, "balance": 0.3}),
        ("table6", "mix", {"dcr_weight": 0.02, "degradation": "mix", "num_negatives": 5}),
        ("figure8a", "9", {"num_negatives": 9, "interval": 250, "growth_every": 20_000}),
        ("figure8b", "1000", {"interval": 250}),
        ("figure8b", "100", {"interval": 25}),
    ],
)
def test_an_arms_own_settings_win_over_the_command_lines(table, arm, expected):
    losses, recipe = {"dcr_weight": 0.02, "balance": 0.3}, {"iterations": 50_000}
    settings = part_of(table, losses=losses, recipe=recipe).arms[arm][0].settings
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("said", "balance"),
    [
        ({}, 0.3),
        ({"num_negatives": 2}, 0.3),
        ({"dcr_weight": 0.1}, None),
        ({"dmm_weight": 0.0}, None),
        ({"dcr_weight": 0.1, "balance": 0.5}, 0.5),
        ({"balance": 0}, None),
    ],
)
def test_given_weights_mean_themselves(said, balance):
    arms = part_of("table2", losses=said).arms
    assert arms["DCKD"][0].settings["balance"] == balance
    expected = {"balance": balance} if balance else {}
    for arm in ("CSD", "AECR", "MCLIR"):
        assert arms[arm][0].settings == expected
    for arm in ("Scratch", "Logits", "FAKD", "DUKD"):
        assert arms[arm][0].settings == {}


def test_sizes_of_the_command_line_are_of_the_whole_run():
    block = replace(TABLES["table3"].blocks[1], student="restormer-student")
    student, _ = BUDGETS["paper"].recipes(block, {"batch_size": 8, "crop": 64})
    assert {(stage.crop, stage.batch_size) for stage in student.all_stages} == {(64, 8)}


def test_the_paper_budgets_methods_are_the_released_ones():
    """DUKD's configurations of each network, and the DMM that the paper's weight belongs to."""
    recipe = SMALL_SR
    for network, scale, expected in (
        ("rcan-student", 2, {"probability": 0.0}),
        ("rcan-student", 3, {"weight": 0.5, "logits_weight": 0.5, "zoom_out": True}),
        ("swinir-student", 4, {"weight": 0.2, "logits_weight": 0.2}),
        ("tiny", 2, {}),
    ):
        settings = runs.settings_of("dukd", {}, recipe, network, scale)
        assert settings == expected
        student, teacher = (networks.build("tiny", 2) for _ in range(2))
        runs.build("dukd", settings, student, teacher, None, seed=0)
    assert BUDGETS["paper"].losses == {"form": "released"}
    assert runs.meant_for("csd", BUDGETS["paper"].losses) == {}


def test_each_seed_has_its_own_transforms():
    student, teacher = networks.build("tiny", 2), networks.build("small", 2)
    for method, settings in (("dukd", {}), ("dckd_star", make("dckd_star")[1].settings)):
        arms = [runs.build(method, settings, student, teacher, "compact", s) for s in (0, 1)]
        assert [arm.terms[-1].seed for arm in arms] == [1, 3]


def test_a_measured_step_writes_no_checkpoint(store, monkeypatch):
    monkeypatch.setattr("examples.restoration.training.checkpoint.save", None)  # a call would fail
    assert step_seconds(make("logits")[1], store) > 0


def test_settings_reach_the_losses():
    student, teacher = networks.build("tiny", 2), networks.build("small", 2)
    said = {"balance": 0.3, "degradation": "blur", "interval": 7, "num_negatives": 2}
    said |= {"level_weights": [1, 0, 0, 0, 0], "form": "released", "logits_weight": 0.5}
    settings = runs.settings_of("dckd", said, SMALL_SR, "tiny", 2)
    logits, dckd = runs.build("dckd", settings, student, teacher, "compact", seed=4).terms
    assert (logits.weight, dckd.balance, dckd.dmm.form) == (0.5, 0.3, "released")
    assert dckd.dcr.level_weights == (1, 0, 0, 0, 0)
    assert type(dckd.negatives.degradation).__name__ == "RandomBlur"
    assert (dckd.negatives.num_negatives, dckd.history.interval) == (2, 7)
    assert dckd.negatives.seed == 8


def test_the_papers_schedule_is_the_default():
    """1000, 2000, 3000 steps, one more every 100,000 of 250,000."""
    recipe = Recipe(iterations=250_000, batch_size=16, crop=48)
    settings = runs.settings_of("dckd", {}, recipe, "rcan-student", 2)
    student = networks.build("tiny", 2)
    arm = runs.build("dckd", settings, student, student, "compact", seed=0)
    history = arm.terms[1].history
    due = [step for step in range(1, 10_000) if history.due(step)]
    assert due == list(range(1000, 10_000, 1000))
    assert history.due(102_000) and not history.due(101_000)
    assert history.due(201_000) and not history.due(202_000)


def test_fakds_layers_exist(paper_networks):
    for name, layers in runs.FAKD_LAYERS.items():
        known = dict(networks.build(name, 2).named_modules())
        assert all(layer in known for layer in layers), name
        assert len(layers) == 3


def test_stores_of_earlier_versions_go_on(monkeypatch):
    """A run's name follows from its settings alone: another one would train it again."""
    monkeypatch.setattr(ImageSet, "fingerprint", "0" * 12)
    monkeypatch.setattr(runs, "_fingerprint", lambda encoder: encoder)
    assert make("logits", teacher=None)[1].identity == "sr_x2_logits_0_258eb9141c"
    assert make("dckd", {"balance": 0.3}, teacher=None)[1].identity == "sr_x2_dckd_0_b0b839bd1c"
    cheaper = {"recipe": averaging(RECIPE), "teacher": None}
    assert make("dckd", {"every": 2}, **cheaper)[1].identity == "sr_x2_dckd_0_c2c8ab6aff"


def test_arms_of_the_evidence_have_one_change():
    """From Logits the term that is added, from DCKD one setting; the rest of the run is the same.

    A moving average is kept in all of them, so it is no change of any.
    """
    part = part_of("evidence", seeds=(0,), student="medium")
    jobs = {name: run for name, (run,) in part.arms.items()}
    logits, dckd = jobs["Logits"].determined, jobs["DCKD"].determined
    assert logits["recipe"]["ema"] is not None and logits["losses"] == {}
    fingerprint, term = dckd["encoder"], {"method", "losses", "encoder"}
    for name, job in jobs.items():
        seen = job.determined
        changed = {key for key in seen if seen[key] != logits[key]}
        assert changed <= (term | {"teacher"} if name == "Scratch" else term), name
        assert seen["encoder"] in (None, fingerprint)
        losses = {key: seen["losses"].get(key) for key in {**seen["losses"], **dckd["losses"]}}
        differing = {key for key in losses if losses[key] != dckd["losses"].get(key)}
        if seen["method"] in ("dckd", "dckd_star"):
            assert differing == CHANGES.get(name, set()), name
    assert {name for name, job in jobs.items() if not job.raw} == {
        name for name in jobs if "average" in name or name == "mixture"
    }
    methods = {"scratch", "logits", "consistency", "dckd", "dckd_star"}
    assert {job.method for job in jobs.values()} == methods
    for name, twin in (("average", "Logits"), ("DCKD, average", "DCKD")):
        assert jobs[name].identity == jobs[twin].identity
    for pair in TABLES["evidence"].comparisons:
        assert set(pair) <= jobs.keys()


CHANGES = {  # of the evidence's arms from DCKD
    "DCR": {"dmm_weight"},
    "DMM": {"dcr_weight"},
    "DCR, fixed weight": {"dmm_weight", "balance", "history"},
    "every 2nd step": {"every"},
    "every 4th step": {"every"},
    "two negatives": {"num_negatives"},
    "half of each crop": {"half"},
}


@pytest.mark.parametrize("said", [{}, {"history": "average"}])
def test_a_history_follows_the_student_or_its_moving_average(said, tmp_path, accelerator):
    recipe = replace(RECIPE, ema=0.9)
    settings = runs.settings_of("dckd", {"interval": 2, **said}, recipe, "tiny", 2)
    _, job = make("dckd", recipe=recipe, settings=settings)
    teacher = networks.build("small", 2)
    run, step, arm = job.start(tmp_path, accelerator(), teacher)
    followed = arm.terms[1]._step_hook.followed()
    assert followed is (run.average.module if said else run.student)
    train(run, step, dckd=arm, resume=False)
    assert arm.terms[1].history.iteration == RECIPE.iterations
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert list(run.records[0])[:5] == ["step", "l1", "logits", "dcr", "dmm"]


def test_an_encoder_study_shares_its_runs_with_the_tables():
    part = part_of("study", encoders=["compact", "runs/other.safetensors"])
    encoders = {name: jobs[0].encoder for name, jobs in part.arms.items()}
    assert encoders == {
        "Logits": "compact",
        "compact": "compact",
        "other": "runs/other.safetensors",
    }
    table2 = part_of("table2", arms=("DCKD",))
    assert part.arms["compact"][0].identity == table2.arms["DCKD"][0].identity


def test_the_paper_has_numbers_for_every_table_and_network():
    for name, table in TABLES.items():
        for block in table.blocks:
            numbers = report.cited(name, block.label)
            assert bool(numbers) == name.startswith("table"), (name, block.label)
            names = {arm.paper or arm.name for arm in table.arms}
            assert table.reference in {arm.name for arm in table.arms}
            if numbers:
                assert len(names & numbers.keys()) >= 3
                assert {s for sets in numbers.values() for s in sets} <= set(block.sets)
    swinir = report.cited("table2", "SwinIR x4")
    assert swinir["DCKD*"]["Urban100"] == [26.62, 0.8032]
    assert swinir["MiPKD"]["Set5"] == [32.39, 0.8971]
    assert report.cited("table4", "Restormer")["DCKD"]["Rain100L"] == [38.02, 0.9762]


def test_what_the_last_fifth_of_a_run_gained():
    records = [{"step": 10.0 * n, "l1": 0.1} for n in range(1, 101)]
    for step, psnr in ((100, 30.0), (790, 33.0), (800, 33.5), (900, 33.6), (1000, 33.75)):
        records[step // 10 - 1]["psnr"] = psnr
    assert report.late_gain(records) == pytest.approx(0.25)
    assert report.late_gain([{"step": 4.0, "psnr": 30.0}]) == 0  # one look at all


def test_a_report_tells_where_its_runs_were_trained_if_elsewhere():
    here = {"commit": common.commit()}
    assert report.commits({"Teacher": [here], "Logits": [here, here]}) == {}
    found = report.commits({"Teacher": [{"commit": "0ldc0de"}], "Logits": [here]})
    assert set(found["trained at"].split(", ")) == {common.commit(), "0ldc0de"}


def test_a_recorded_command_can_be_typed_again(monkeypatch):
    said = ["table2", "--block", "RCAN x2", "--arms", "DCKD*"]
    monkeypatch.setattr("sys.argv", ["tables", *said])
    assert shlex.split(common.command()) == ["python", "-m", "benchmarks.tables", *said]


def test_figure_8_without_what_a_step_costs(tmp_path):
    arms = {n: {"Set5": {"psnr": [30.0], "ssim": [0.9]}} for n in ("3", "5")}
    plots = pytest.importorskip("benchmarks.tables.plots", exc_type=ImportError)
    for costs in ({}, {"ms a step": {"3": 20.0}}):
        plots.against_number(arms, costs, "negatives", tmp_path / "x.png")
        assert (tmp_path / "x.png").stat().st_size > 0


def test_means_deviations_and_paired_gains():
    """Runs that diverged are no part of them."""
    nan = math.nan
    assert report.mean([1.0, nan, 2.0, 3.0]) == (2.0, 1.0)
    assert math.isnan(report.mean([4.0]).deviation) and math.isnan(report.mean([nan]).mean)
    found = report.gain([1.1, 2.3, nan, 3.2, 4.0], [1.0, 2.0, 5.0, 3.0, nan])
    assert found == pytest.approx((0.2, 0.1 / 3**0.5))
    assert report.gain([1.0], [1.0, 2.0]) is None


def test_comparisons_stand_beside_chance(tmp_path):
    """Of both students, counted, as far as both arms are there."""
    psnr = {"Logits": [30.0, 31.0, 32.0], "DCKD": [30.1, 31.2, 32.3], "DCR": [31.0, 32.0]}
    arms = {name: {"Set5": {"psnr": values}} for name, values in psnr.items()}
    table = replace(TABLES["evidence"], comparisons=(("Logits", "DCKD"), ("DCR", "DMM")))
    text = report.write_comparisons(table, {"a": arms, "b": arms}, tmp_path / "found")
    assert "These are 4 comparisons" in text and "With 3 seeds" in text
    assert "beyond 4.3\nstandard errors" in text or "beyond 4.3 standard errors" in text
    assert "all beyond 8.9 " in text
    assert "| DCKD | Logits | +0.200 ± 0.058 | +0.200 ± 0.058 |" in text
    assert "| Logits | DCKD | -0.200 ± 0.058 | -0.200 ± 0.058 |" in text
    assert "| DCR |" not in text and "| DMM |" not in text  # unpaired, not trained
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(row["arm"], row["student"]) for row in rows[:2]] == [("DCKD", "a"), ("DCKD", "b")]
    assert "One seed says nothing" in report.chance(1, 2)


@pytest.mark.skipif(
    not (Path(os.environ.get("DCKD_DATA", "")) / "sr" / "train" / "BSDS500").is_dir(),
    reason="DCKD_DATA names no folder with sr/train/BSDS500",
)
def test_small_images_are_disjoint():
    found = images("small", "sr", 2, ())
    assert [len(found.development.files), *(len(x.files) for x in found.tests)] == [10, 5 + 5, 30]
    assert [len(x.pairs) for x in found.tests] == [5, 30]
    together = [f for x in (found.train, found.development, *found.tests) for f in x.files]
    assert len(together) == len(set(together))
    assert len(found.train.files) == 91 + 221 - 40
    for task, count in (("deblur", 16), ("derain", 24)):
        found = images("small", task, 1, ())
        assert len(found.train.files) >= count // 2
        files = [f for x in (found.train, found.development, *found.tests) for f in x.files]
        assert len(files) == len(set(files))
        assert found.tests[0].pairs[0].lq.shape == found.tests[0].pairs[0].hq.shape
