"""The command line: bad input is one clear line and exit code 2, and loses nothing."""

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from stores import fresh
from sweeps import assert_one_line

from gfe_study import names
from gfe_study.config import space_files
from gfe_study.metrics import DIVERGED, ENCODE_NFE, IMAGES_SEEN, NFE_FORWARD, TEST_LOSS, TRAIN_LOSS, VAL_LOSS
from gfe_study.study.journal import Journal
from gfe_study.tracking.client import Tracker
from gfe_study.tracking.runs import RUNNING, Change
from gfe_study.tracking.uri import URI_VARIABLE

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[1]
TINY = ["model.hidden=[16]", "model.latent_dim=4", "solver.max_nfe=6", "eval.schedule=[16]", "eval.val_images=16"]
TINY += ["eval.test_images=16", "budget.images=32"]
TINY_SETS = [argument for pair in TINY for argument in ("--set", pair)]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: Run) -> Run:
    """Types `gfe-study …` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("GFE_DATA_DIR", raising=False)
    return typed


def space(folder: Path, **changes: object) -> str:
    declared = yaml.safe_load(space_files()["smoke"].read_text())
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({**declared, **changes}))
    return str(file)


NUISANCE = {"solver.s_max": {"loguniform": [10, 1000]}}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"nuisanse": {}}, ["mine.yaml", "nuisanse", "did you mean 'nuisance'", "allowed:"]),
        (
            {"nuisance": {"solver.bta": {"uniform": [0.1, 0.9]}}, "start_from": []},
            ["solver.bta", "did you mean 'beta'"],
        ),
        ({"trials": True}, ["mine.yaml", "trials: given true", "a number"]),
        ({"fixed": {"model": {"hidden": [100_000_000]}}}, ["model.hidden", "100000000", "less than or equal to 65536"]),
        ({"trials": "many"}, ["mine.yaml", "trials", "'many'", "allowed: a valid integer"]),
        ({"nuisance": {"optim.lr": {"choice": []}}}, ["optim.lr", "at least one value"]),
        ({"nuisance": {"optim.lr": {"loguniform": [0, 1]}}}, ["optim.lr", "[0, 1]", "above 0"]),
        ({"nuisance": {"optim.lr": {"loguniform": [-1, 1]}}}, ["optim.lr", "above 0"]),
        ({"nuisance": {"optim.lr": {"uniform": [1, 0.5]}}}, ["optim.lr", "low below high"]),
        (
            {"nuisance": {"solver.beta": {"uniform": [0.5, 1.5]}}, "start_from": []},
            ["solver.beta", "1.5", "less than 1"],
        ),
        ({"fixed": {"data": {"name": "minst"}}}, ["mine.yaml", "minst", "did you mean 'mnist'"]),
        ({"fixed": {"flow": {"name": "nesterov"}}}, ["amd cannot follow", "solver.name=rk4"]),
        ({"metric": {"name": "test_loss"}}, ["metric.name", "test_loss", "allowed: common_val_loss, train_loss"]),
        ({"start_from": ["papr"]}, ["start_from", "papr", "did you mean 'paper'"]),
    ],
)
def test_a_bad_space_is_one_line(run: Run, tmp_path: Path, changes: dict[str, object], parts: list[str]) -> None:
    for command in ("sweep", "plan"):
        code, out, err = run(command, space(tmp_path, **changes))
        assert (code, out) == (2, "")
        assert_one_line(err, *parts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]  # nothing was started


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["sweep", "amdd"], ["'amdd'", "did you mean 'amd'", "smoke"]),
        (["sweep", "none.yaml"], ["none.yaml", "No such file"]),
        (["sweep", "smoke", "--set", "solver.betta=1"], ["solver.betta", "did you mean 'beta'"]),
        (["sweep", "smoke", "--set", "solver.beta"], ["--set solver.beta", "KEY=VALUE"]),
        (["sweep", "mine.yaml", "--trials", "0"], ["mine.yaml", "No such file"]),
        (["sweep", "smoke", "--set", "solver.beta=[1"], ["--set solver.beta", "not YAML"]),
        (["sweep", "smoke", "--study", "a/b"], ["--study", "'a/b'"]),
        (["sweep", "smoke", "--study", "n" * 300], ["--study", "at most 100 bytes"]),
        (["sweep", "smoke", "--study", "a\x07b"], ["--study", "'a\\x07b'", "control characters"]),
        (["resume", "smoke"], ["unknown study 'smoke'", "gfe-study sweep"]),
        (["status", "smoke"], ["unknown study 'smoke'"]),
        (["train", "--config", "none.yaml"], ["none.yaml"]),
        (["train", "--config", "none.pt"], ["none.pt", "no such file", "best.pt"]),
        (["train", "--set", "seed=-1"], ["seed", "-1"]),
        (["encode", "none.pt", "--images", "a.npy", "--out", "b.npz"], ["none.pt", "no such file"]),
        (["report", "nothing"], ["'nothing'", "allowed:"]),
    ],
)
def test_bad_arguments_are_one_line(run: Run, arguments: list[str], parts: list[str]) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert_one_line(err, *parts)


RATE = ["--set", "optim.lr=0.1"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sweep", "amd", "--trials", "0"], "--trials: given 0; allowed: greater than 0"),
        (["plan", "amd", "--seeds", "0", *RATE], "--seeds: given 0; allowed: greater than 0"),
        (
            ["sweep", "solvers", "--set", "solver.kappa=0"],
            "--set solver.kappa: given 0; allowed: greater than or equal to 1",
        ),
        (["plan", "amd", *RATE, "--set", "solver.beta=7"], "--set solver.beta: given 7; allowed: less than 1"),
        (["train", *RATE, "--set", "seed=-1"], "--set seed: given -1; allowed: in [0, 2³¹)"),
        (
            ["sweep", "vae", "--set", "method.beta=1", *RATE],
            "--set optim.lr: trials: given 8 without nuisance, with nothing to search; ",
        ),
        (["sweep", "table1", *RATE, "--trials", "3"], "--trials: given 3 without nuisance, with nothing to search; "),
        (
            ["sweep", "amd", "--set", "data=mnst"],
            "--set data: given 'mnst'; did you mean 'mnist'? allowed: arrays, celeba, ",
        ),
        (
            ["sweep", "amd", "--dataset", "mnst"],
            "DATASET: given 'mnst'; did you mean 'mnist'? allowed: arrays, celeba, ",
        ),
        (["train", "--set", "solver={beta: 7}"], "--set solver: solver.beta: given 7; allowed: less than 1"),
        (["sweep", "amd", "--set", "seed=3"], "--set seed: given; allowed: seeds, the number of runs of every "),
    ],
)
def test_an_error_names_what_was_typed(run: Run, tmp_path: Path, arguments: list[str], line: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {line}")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_file_names_the_file(run: Run, tmp_path: Path) -> None:
    file = space(tmp_path, fixed={"solver": {"name": "amd", "beta": 7}}, seeds=0)
    for more in ([], RATE, ["--trials", "0"], ["--set", "solver.s_max=-1"], ["--dataset", "mnst"]):
        _, _, err = run("sweep", file, *more)
        assert_one_line(err, f"error: {file}: ")


def test_the_dataset_of_make_has_its_name(run: Run) -> None:
    line = ["make", "plan", "SPACE=amd", "DATASET=nosuch", "SET=optim.lr=0.1", "--old-file=.venv/.installed"]
    shown = subprocess.run([*line, "--dry-run", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True)
    code, _, err = run(*shlex.split(shown.stdout.splitlines()[-1])[1:])
    assert code == 2
    assert_one_line(err, "error: DATASET: given 'nosuch'; allowed: arrays, celeba, digits, ")


def test_a_tilde_is_the_home_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves the tilde of `--storage='~/x'` alone."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    _, out, _ = run("status", "--storage", "~/x")
    assert f"{tmp_path / 'home' / 'x'} holds no study yet" in out


def test_missing_data_says_where_it_looked(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so before any trial begins."""
    import torchvision

    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("GFE_DATA_DIR", str(tmp_path / "elsewhere"))
    code, _, err = run("sweep", "smoke", "--set", "data.name=mnist")
    assert code == 2
    where = [str(tmp_path / "elsewhere" / "MNIST" / "raw"), str(tmp_path / "data" / "MNIST" / "raw")]
    assert_one_line(err, *where, "download failed", "GFE_DATA_DIR")
    assert not (tmp_path / "results").exists()


def test_a_store_that_is_no_database(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but somebody's notes")
    code, _, err = run("sweep", "smoke")
    assert code == 2
    assert_one_line(err, "mlflow.db", "not an sqlite database", "MLFLOW_TRACKING_URI")
    assert (tmp_path / "mlflow.db").read_text() == "not a database, but somebody's notes"


def test_a_read_only_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    code, _, err = run("sweep", "smoke", "--storage", "closed/results")
    assert code == 2
    assert_one_line(err, "closed", "--storage")


def test_a_working_folder_that_is_read_only(run: Run, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        code, _, err = run("sweep", "smoke")
    finally:
        tmp_path.chmod(0o755)
    assert code == 2
    assert_one_line(err, str(tmp_path))


def test_plan_starts_nothing(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("plan", "smoke", "--json")
    assert code == 0
    planned = json.loads(out)
    assert (planned["total"], planned["done"], len(planned["trials"])) == (4, 0, 4)
    assert len({trial["fingerprint"] for trial in planned["trials"]}) == 4
    assert list(tmp_path.iterdir()) == []


def test_spaces_are_listed_and_printed(run: Run) -> None:
    _, out, _ = run("spaces")
    assert {line.split()[0] for line in out.splitlines()} >= {"amd", "rk4", "nesterov", "ae", "smoke"}
    _, out, _ = run("spaces", "amd")
    assert yaml.safe_load(out)["fixed"]["solver"]["name"] == "amd"


def test_the_yaml_of_a_trial_repeats_its_numbers(run: Run, tmp_path: Path) -> None:
    """`train` logs exactly one trial."""
    fresh(tmp_path / "mlflow.db")
    code, out, _ = run("train", *TINY_SETS, "--set", "seed=3", "--json")
    first = json.loads(out)
    assert code == 0
    assert {TRAIN_LOSS, VAL_LOSS, TEST_LOSS, NFE_FORWARD, ENCODE_NFE} <= set(first)
    assert first[IMAGES_SEEN] == 32
    (config,) = tmp_path.glob(f"mlartifacts/train/*/artifacts/{names.TRIAL_FILE}")
    (decoder,) = tmp_path.glob(f"results/train/*/{names.BEST_CHECKPOINT}")  # holds its configuration too
    assert Path(first.pop("decoder")) == decoder.resolve()
    exact = [name for name in first if not name.endswith("seconds")]
    for number, kept in enumerate([config.rename(tmp_path / "again.yaml"), decoder]):
        code, out, _ = run("train", "--config", str(kept), "--json", "--storage", f"elsewhere{number}")
        again = json.loads(out)
        assert {name: again[name] for name in exact} == {name: first[name] for name in exact}


def test_a_trials_decoder_encodes_a_users_images(run: Run, tmp_path: Path) -> None:
    fresh(tmp_path / "mlflow.db")
    run("train", *TINY_SETS)
    (best,) = tmp_path.glob(f"results/train/*/{names.BEST_CHECKPOINT}")
    images = np.random.default_rng(0).random((3, 8, 8))
    np.save(tmp_path / "images.npy", images)
    arguments = ["encode", str(best), "--images", "images.npy", "--out", "codes.npz", "--json"]
    for assignment in ("model.latent_dim=5", "solver.beta=7"):
        code, _, err = run(*arguments, "--set", "optim.lr=0.1", "--set", assignment)
        assert code == 2
        assert_one_line(
            err, f"error: --set {assignment.partition('=')[0]}: ", "do not " if "model" in err else "given 7"
        )
        assert not (tmp_path / "codes.npz").exists()

    code, out, _ = run(*arguments, "--set", "solver.max_nfe=40")
    assert code == 0
    codes = np.load(tmp_path / "codes.npz")
    assert (codes["latent"].shape, codes["reconstruction"].shape) == ((3, 4), (3, 8, 8))
    x, y = codes["reconstruction"], images
    entropy = -(y * np.log(x) + (1 - y) * np.log(1 - x)).mean(axis=(1, 2))
    assert codes["loss"] == pytest.approx(entropy, rel=1e-5)
    assert json.loads(out)["loss"] == pytest.approx(entropy.mean(), rel=1e-5)

    np.save(tmp_path / "images.npy", images * 300)
    code, _, err = run(*arguments)
    assert code == 2
    assert_one_line(err, "images.npy", "given values from", "floats in [0, 1]")

    best.write_bytes(best.read_bytes()[:1000])
    code, _, err = run(*arguments)
    assert code == 2
    assert_one_line(err, "best.pt", "damaged checkpoint")


def test_doctor_finds_versions_and_the_store(run: Run) -> None:
    code, out, _ = run("doctor", "--json")
    findings = {finding["subject"]: finding for finding in json.loads(out)}
    assert code == 0
    assert "torch" in findings["versions"]["text"]
    assert findings["data digits"]["text"].startswith("1,197 + 300 + 300 images")
    assert findings["store"]["ok"]


def test_doctor_closes_runs_of_a_killed_driver(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URI_VARIABLE, fresh(tmp_path / "mlflow.db"))
    with Journal.open(tmp_path / "results" / "amd") as journal:
        journal.record_study({}, {}, {})
    tracker = Tracker("amd")
    tracker.open_study({}, "?", {})
    tracker.write([Change("f" * 16, "left behind", RUNNING)])
    code, out, _ = run("doctor")
    assert code == 1
    assert "BAD     study amd: 1 runs marked running that nobody writes to" in out
    assert run("doctor", "--fix")[0] == 0
    assert run("doctor")[0] == 0
    assert Tracker("amd").orphans() == []


def test_an_impossible_density_fails_in_one_line(run: Run, tmp_path: Path) -> None:
    fresh(tmp_path / "mlflow.db")
    pulled = ["--set", "method.name=gen", "--set", "target=mixture_of_gaussians", "--set", "method.labelled=100"]
    code, _, err = run("train", *TINY_SETS, *pulled)
    assert code == 2
    assert_one_line(err, "method.labelled: given 100", "allowed:")


def test_a_trial_that_diverges_says_so(run: Run) -> None:
    code, out, _ = run("train", *TINY_SETS, "--set", "optim.lr=1e30", "--json")
    point = json.loads(out)
    assert code == 1
    assert point[DIVERGED] == 1
    assert 0 < point[IMAGES_SEEN] <= 32
