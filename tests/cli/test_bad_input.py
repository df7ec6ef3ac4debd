"""Bad input: exit code 2, one sentence that names the thing, nothing on stdout, nothing written."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import torch

from robustbench_defenses.cli.main import main

from . import subjects

# What it is; the command; words that the sentence (or its hint) must have. RUN is a trained run.
NAMES = [
    ("command", "evl last", "unknown command 'evl' | 'eval'"),
    ("option", "eval RUN --atack pgd", "unknown option '--atack' | '--attack'"),
    ("option without value", "eval RUN --attack", "--attack"),
    ("argument too many", "train nt pgd_at --dataset digits", "pgd_at"),
    ("attack", "eval RUN --attack pdg", "unknown attack 'pdg' | did you mean 'pgd'"),
    ("second attack", "eval RUN --attack fgsm,pdg --eps 0.1", "unknown attack 'pdg'"),
    ("no attack", "eval RUN --attack ,", "names no attack"),
    ("attack of rrd attack", "attack RUN --attack pdg", "unknown attack 'pdg'"),
    ("data set", "eval net.py:build --dataset digitz", "unknown dataset 'digitz' | 'digits'"),
    ("data set of a run", "eval RUN --dataset digitz", "unknown dataset 'digitz'"),
    ("no data set", "eval net.py:build --eps 0.1", "does not say which data set | --dataset"),
    ("another data set", "eval RUN --dataset mnist", "was trained on digits, not on mnist"),
    ("model", "train nt --dataset digits --model lenot", "unknown model 'lenot' | 'lenet'"),
    ("defense", "train ntt --dataset digits", "unknown defense 'ntt' | 'nt'"),
    ("preset", "train nt --dataset digits --preset quik", "unknown preset 'quik' | quick"),
    ("variant", "train nt --dataset digits --variant papr", "variant 'papr'"),
    ("variant of aicr", "train aicr --dataset digits --variant papr", "papr | paper"),
    ("norm", "eval RUN --norm l7 --eps 0.1", "l7 | linf"),
    ("norm of an attack", "eval RUN --attack pgd_l2 --norm linf", "works in l2, not in linf"),
    ("norm against norm", "eval RUN --norm l2 --set norm=l1", "norm=l1 | --norm l2"),
    ("sweep", "eval RUN --sweep upwards", "unknown sweep 'upwards' | envelope"),
    ("view", "eval RUN --view soft", "has no view 'soft' | deployed"),
    ("subset", "eval RUN --subset last", "unknown subset 'last' | first"),
    ("fold", "eval RUN --subset fold:10", "unknown subset 'fold:10' | 0 to 9"),
    ("random subset", "eval RUN --subset random:x", "unknown subset 'random:x'"),
    ("keep", "attack RUN --keep first", "unknown keep 'first' | best_loss"),
    ("name for info", "info pdg", "nothing is called 'pdg'"),
    ("kind for list", "list atacks", "atacks | attacks"),
    ("format", "report evals --format word", "unknown format 'word'"),
]
NUMBERS = [
    ("negative eps", "eval RUN --eps -1", "eps -1 is negative"),
    ("eps over zero", "eval RUN --eps 9/0", "eps '9/0' divides by zero"),
    ("large eps", "eval RUN --eps 8", "Linf eps 8 is larger | 8 looks like 8/255"),
    ("large eps, attack", "attack RUN --eps 8", "Linf eps 8 is larger | 8 looks like 8/255"),
    ("large eps, network", "eval net.py:build --dataset digits --eps 8", "8 looks like 8/255"),
    ("nan eps", "eval RUN --eps nan", "eps nan is not a finite number"),
    ("infinite eps", "eval RUN --eps inf --norm l2", "eps inf is not a finite number"),
    ("eps of letters", "eval RUN --eps abc", "eps 'abc' is not a number"),
    ("eps of letters, attack", "attack RUN --eps 0.1,0.2", "eps '0.1,0.2' is not a number"),
    ("empty eps", "eval RUN --eps ''", "eps"),
    ("empty grid", "eval RUN --eps ' , '", "the eps grid is empty"),
    ("grid of two parts", "eval RUN --eps-sweep 0:1", "eps grid '0:1' needs start:stop:step"),
    ("grid without step", "eval RUN --eps-sweep 0:0.5:0", "eps grid '0:0.5:0' is empty"),
    ("falling grid", "eval RUN --eps-sweep 0.5:0:0.1", "eps grid '0.5:0:0.1' is empty"),
    ("endless grid", "eval RUN --eps-sweep 0:1:1e-9", "at most 1000"),
    ("two grids", "eval RUN --eps 0.1 --eps-sweep 0:0.5:0.1", "exclude each other"),
    ("grid of a set without one", "eval net.py:build --dataset npz:good.npz", "no published"),
    ("no examples", "eval RUN -n 0", "-n 0"),
    ("examples in letters", "eval RUN -n abc", "-n abc"),
    ("negative examples", "eval RUN -n -5", "-n -5"),
    ("too many examples", "eval RUN -n 361", "-n 361: digits has only 360"),
    ("too many for a fold", "eval RUN -n 37 --subset fold:3", "-n 37: digits has only 36"),
    ("too many correct ones", "eval RUN -n 360 --subset correct", "classifies only"),
    ("batch size", "eval RUN --batch-size 0", "--batch-size 0"),
    ("batch size in letters", "eval RUN --batch-size big", "--batch-size big"),
    ("threads", "eval RUN --threads 0", "--threads"),
    ("seed", "eval RUN --seed -1", "--seed"),
    ("seed in letters", "eval RUN --seed x", "--seed | x is not a whole number"),
    ("tolerance", "check results --tolerance 200", "--tolerance 200"),
    ("precision", "eval RUN --precision fp64", "unknown precision 'fp64' | bf16"),
    ("device", "eval RUN --device tpu", "unknown device 'tpu' | cuda"),
    ("device number", "eval RUN --device cpu:x", "unknown device 'cpu:x'"),
]
SETTINGS = [
    ("set without =", "eval RUN --set steps", "--set 'steps' has no value"),
    ("set without key", "eval RUN --set =3", "--set '=3' has no key"),
    ("set twice", "eval RUN --set steps=3 --set steps=4", "--set steps is given twice"),
    ("unknown key", "eval RUN --set stepz=3", "no parameter 'stepz' | 'steps'"),
    ("wrong type", "eval RUN --set steps=many", "steps | many"),
    ("out of range", "eval RUN --set steps=0", "steps | 0"),
    ("nan setting", "eval RUN --set step_size=nan", "step_size | nan"),
    ("unknown choice", "eval RUN --set loss=mse", "loss | mse"),
    ("of another attack", "eval RUN --attack fgsm --set pgd.steps=3", "'pgd' is not among"),
    ("not of every attack", "eval RUN --attack fgsm,pgd --set steps=3", "has no parameter 'steps'"),
    ("setting, attack", "attack RUN --set stepz=3", "no parameter 'stepz'"),
    ("setting, training", "train nt --dataset digits --set epohcs=3", "'epohcs'"),
]
SUBJECTS = [
    ("subject", "eval dagits", "there is no run 'dagits'"),
    ("second subject", "eval RUN dagits -n 5 --eps 0.1", "there is no run 'dagits'"),
    ("subject in brackets", "eval RUN[rule", "cannot be read"),
    ("deployment option", "eval RUN[rule=nearest]", "unknown deployment option 'rule'"),
    ("option without =", "eval RUN[rule]", "'rule' is not NAME=VALUE"),
    ("no run at all", "eval last --results nodata", "there is no finished run"),
    ("checkpoint", "eval RUN@worst", "unknown checkpoint 'worst' | best, last"),
    ("checkpoint not stored", "eval RUN@step-7", "no checkpoint 'step-7' | best, last"),
    ("missing weights", "eval results/runs/missing", "has no checkpoint 'best' | last"),
    ("truncated weights", "eval results/runs/truncated", "best.safetensors is truncated"),
    ("pickle as weights", "eval results/runs/pickle", "is a pickle, not safetensors"),
    ("weights of other shapes", "eval results/runs/misfit", "does not fit | network.fc1.bias"),
    ("weights that lack one", "eval results/runs/lacks", "lacks tensor 'network.fc1.bias'"),
    ("weights of a stranger", "eval results/runs/stranger", "was not written by rrd train"),
    ("malformed run", "eval results/runs/malformed", "run.json is not valid JSON"),
    ("unfinished run", "eval results/runs/unfinished", "is unfinished"),
    ("weights as FILE", "eval weights.pt:build --dataset digits", "is not a .py file"),
    ("FILE", "eval not.py:build --dataset digits", "not.py: no such file"),
    ("FILE without NAME", "eval net.py --dataset digits", "net.py | net.py:Net"),
    ("NAME", "eval net.py:biuld --dataset digits", "net.py has no 'biuld' | 'build'"),
    ("syntax", "eval syntax.py:build --dataset digits", "syntax.py, line 1: SyntaxError"),
    ("factory that raises", "eval bad.py:raises --dataset digits", "bad.py, line | are gone"),
    ("factory that leaves", "eval bad.py:leaves --dataset digits", "bad.py, line | SystemExit"),
    ("factory with arguments", "eval bad.py:wants --dataset digits", "needs arguments"),
    ("text", "eval bad.py:text --dataset digits", "bad.py:text returns str"),
    ("number", "eval bad.py:number --dataset digits", "bad.py:number is int"),
]
NETWORKS = [
    ("nan", "NaN for test image 0"),
    ("late_nan", "NaN for test image 5"),
    ("infinite", "infinite logits for test image 0"),
    ("shape", "gives logits of shape"),
    ("one_row", "logits of shape (1, 10) for"),
    ("few", "gives 5 logits"),
    ("pair", "returns tuple, not a tensor"),
    ("array", "returns ndarray, not a tensor"),
    ("fails", "raises ValueError | no such layer"),
    ("small_images", "raises RuntimeError | test image 0"),
    ("no_gradient", "raises ValueError | inference only"),
]
FILES = [
    ("no npz", "eval net.py:build --dataset npz:none.npz --eps 0.1", "cannot read none.npz"),
    ("npz without a name", "eval net.py:build --dataset npz: --eps 0.1", "npz:"),
    ("text as npz", "eval net.py:build --dataset npz:file --eps 0.1", "file is not an npz file"),
    ("truncated npz", "eval net.py:build --dataset npz:truncated.npz --eps 0.1", "truncated.npz"),
    ("npz without labels", "eval net.py:build --dataset npz:nolabels.npz --eps 0.1", "'labels'"),
    ("pickled npz", "eval net.py:build --dataset npz:pickled.npz --eps 0.1", "is a pickled array"),
    ("images to 255", "eval net.py:build --dataset npz:outside.npz --eps 0.1", "not 0 to 1 | 255"),
    ("images of NaN", "eval net.py:build --dataset npz:nan.npz --eps 0.1", "not finite"),
    ("flat images", "eval net.py:build --dataset npz:shapes.npz --eps 0.1", "shape (20, 64)"),
    ("few labels", "eval net.py:build --dataset npz:fewlabels.npz --eps 0.1", "but 7 labels"),
    ("labels of 2.5", "eval net.py:build --dataset npz:floatlabels.npz --eps 0.1", "whole numbers"),
    ("labels below 0", "eval net.py:build --dataset npz:negative.npz --eps 0.1", "is negative"),
    ("missing data", "eval net.py:build --dataset mnist --eps 0.1", "mnist | rrd data fetch mnist"),
    ("missing training data", "train nt --dataset mnist", "mnist | rrd data fetch mnist"),
    ("FILE data set", "eval net.py:build --dataset bad.py:NoData --eps 0.1", "NoData"),
    ("FILE attack", "eval RUN --attack bad.py:NoAttack --eps 0.1", "NoAttack is not an attack"),
    ("attack that fails", "eval RUN --attack bad.py:Crash --eps 0.1", "bad.py, line | nothing"),
    ("function as attack", "eval RUN --attack bad.py:raises --eps 0.1", "not a dataclass"),
    ("FILE defense", "train bad.py:NoDefense --dataset digits", "NoDefense is not a defense"),
    ("malformed result", "report malformed.json", "malformed.json is not valid JSON"),
    ("no result", "report other.json", 'other.json is not a result of rrd: it has no "schema"'),
    ("result of tomorrow", "report future.json", "rrd.result/9"),
    ("result that lacks parts", "report lacking.json", "lacking.json is not a valid result"),
    ("missing result", "report none.json", "none.json"),
    ("malformed YAML", "report result.yaml", "result.yaml"),
    ("nothing to report", "report --results nodata", "no results"),
    ("plot of words", "report RUN --plot curve.doc", "curve.doc"),
    ("nothing to check", "check nodata", "nodata holds no result"),
    ("no folder to check", "check none", "there is no folder none"),
    ("results below a file", "eval results/runs/RUN --eps 0.1 --results file/x", "cannot write to"),
    ("training below a file", "train nt --dataset digits --results file/x", "cannot write"),
    ("png by another name", "attack RUN --png grid", "grid must end in .png"),
    ("png below a file", "attack RUN --eps 0.1 --png file/grid.png", "cannot write to file"),
    ("npz by another name", "attack RUN --save adv.npy", "adv.npy must end in .npz"),
]
NETWORK_CASES = [
    (f"{command} of a network: {name}", f"{command} bad.py:{name} {REST}", words)
    for REST in ["--dataset digits --eps 0.1 -n 20"]
    for command in ("eval", "attack")
    for name, words in NETWORKS
]
CASES = [*NAMES, *NUMBERS, *SETTINGS, *SUBJECTS, *NETWORK_CASES, *FILES]


@pytest.fixture(scope="module")
def place(digits_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the commands of the table name."""
    folder = tmp_path_factory.mktemp("bad")
    (run,) = (digits_results / "runs").iterdir()
    shutil.copytree(digits_results, folder / "results")
    subjects.write_files(folder)
    subjects.write_results(folder, run.name)
    return folder


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its time and size."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def ends_badly(
    command: str,
    words: str,
    place: Path,
    run_id: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("RRD_RESULTS", "results")
    monkeypatch.setenv("RRD_DATA", "nodata")
    before, threads = tree(place), torch.get_num_threads()
    arguments = [part.replace("RUN", run_id) for part in shlex.split(command)]
    code = main(arguments)
    said = capsys.readouterr()
    assert code == 2, said.err
    assert said.out == ""
    assert "Traceback" not in said.err
    lines = said.err.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    sentence = lines[start:]
    assert len(sentence) == 1 or (len(sentence) == 2 and sentence[1].startswith("  hint: "))
    for word in words.split(" | "):
        assert word in "\n".join(sentence)
    assert tree(place) == before
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("command", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input(
    command: str,
    words: str,
    place: Path,
    run_id: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends_badly(command, words, place, run_id, capsys, monkeypatch)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a CUDA device")
def test_no_cuda_here(
    place: Path,
    run_id: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = "device 'cuda' is not here"
    ends_badly("eval RUN --device cuda", words, place, run_id, capsys, monkeypatch)


def test_the_kinds_are_many_and_named() -> None:
    assert len({case[0] for case in CASES}) == len(CASES) >= 30
