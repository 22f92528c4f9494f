"""figures.py: made-up runs of both tasks; what is drawn is read back from the Figure objects."""

import json
import runpy
import shutil
import sys

import numpy as np
import pytest

from infra import figures
from infra.errors import UserError
from infra.pairs import Pairs

pytest.importorskip("matplotlib")

STEPS = [(0, 0), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)]


def made_up(task):
    """Results with a BC row, five steps of two Grows, and PPO (whose `grow` counts its rounds)."""
    rows = []
    for k, (g, i) in enumerate([*STEPS, (62, 4)]):
        row = {"name": "BC" if k == 0 else "PPO" if g == 62 else "ReST", "grow": g, "improve": i,
               "reward": 0.5 + 0.03 * k, "greedy_reward": 0.55 + 0.02 * k,
               "threshold": 0.5 + 0.1 * i if 0 < i and g < 3 else None}
        rows.append(row | ({"oracle": 0.6 + 0.04 * k, "greedy_oracle": 0.7 + 0.01 * k}
                           if task == "toy" else
                           {"bleu": 31 - 0.3 * k, "beam_bleu": 32 - 0.2 * k,
                            "val_bleu": 31.5 - 0.4 * k, "val_reward": 0.5 + 0.02 * k}))
    metric = {"toy": ("oracle", 0.7), "mt": ("bleu", 25.0)}[task]
    best = [{"policy": policy, "n": n, "reward": start + 0.01 * n, metric[0]: metric[1] + 0.02 * n}
            for policy, start in (("BC", 0.5), ("ReST", 0.7)) for n in (1, 2, 4, 8)]
    return {"task": task, "seconds": 1.0, "rows": rows, "best_of_n": best}


def write(folder, results, grows=2):
    (folder / "steps").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    rng = np.random.default_rng(0)
    for g in range(1, grows + 1):
        rewards = np.clip(rng.normal(0.5 + 0.1 * g, 0.1, 600), 0, 1)
        pairs = Pairs.of(np.arange(600), [np.array([5, 2])] * 600, reward=rewards)
        pairs.human[500:] = True
        pairs.append_to(folder / "steps" / f"score-{g}")
    return folder


def lines(ax):
    """The named lines of a panel; matplotlib names the others _child0, _child1, ..."""
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def texts(ax):
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("task, names", [("toy", ["improve", "best_of_n", "rewards"]),
                                         ("mt", ["improve", "best_of_n", "rewards", "tradeoff"])])
def test_files_are_small_pngs(tmp_path, task, names):
    folder = write(tmp_path / "run", made_up(task))
    written = figures.draw(folder)
    assert written == [folder / f"{name}.png" for name in names]
    for path in written:
        content = path.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[12:16] == b"IHDR"
        assert 3_000 < len(content) < 80_000
        width, height = np.frombuffer(content[16:24], ">u4")
        assert 800 <= width <= 1300 and 400 <= height <= 600


@pytest.mark.parametrize("task, metric, scale", [("toy", ["oracle", "greedy_oracle"], 100),
                                                 ("mt", ["bleu", "beam_bleu"], 1)])
def test_improve_draws_the_rows(task, metric, scale):
    results = made_up(task)
    *rows, ppo = results["rows"]
    figure = figures.improve(results)
    for ax, fields, factor in zip(figure.axes, (["reward", "greedy_reward"], metric), (100, scale)):
        assert set(lines(ax)) == {*fields, *("PPO " + field for field in fields)}
        for field in fields:
            line = lines(ax)[field]
            np.testing.assert_array_equal(line.get_xdata(), range(6))
            np.testing.assert_allclose(line.get_ydata(), [factor * row[field] for row in rows])
            np.testing.assert_allclose(lines(ax)["PPO " + field].get_ydata(), factor * ppo[field])
            assert lines(ax)["PPO " + field].get_linestyle() == ":"
            assert any(text.endswith(f" {factor * rows[-1][field]:.1f}") for text in texts(ax))
        assert [label.get_text() for label in ax.get_xticklabels()] == [
            "BC", "G1\nI0", "G1\nI1", "G1\nI2", "G2\nI1", "G2\nI2"]
        rules = [line.get_xdata()[0] for line in ax.lines
                 if line.get_label().startswith("_") and list(line.get_ydata()) == [0, 1]]
        assert rules == [0.5, 3.5]  # where Grow 1 and Grow 2 begin
    reward = lines(figure.axes[0])
    assert reward["reward"].get_linestyle() == "-"
    assert reward["greedy_reward"].get_linestyle() == "--"


@pytest.fixture
def no_pngs(monkeypatch):
    """Figures are made, but not written, which takes most of the time."""
    monkeypatch.setattr(figures, "save_png", lambda figure, path: None)


@pytest.mark.parametrize("task, names", [("toy", ["improve", "best_of_n"]),
                                         ("mt", ["improve", "best_of_n", "tradeoff"])])
def test_a_run_without_a_grow(tmp_path, no_pngs, task, names):
    results = made_up(task)
    results["rows"] = [results["rows"][0], results["rows"][-1]]
    drawn = figures.draw(write(tmp_path / "run", results, grows=0))
    assert [path.stem for path in drawn] == names
    ax = figures.improve(results).axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["BC"]
    assert list(lines(ax)["reward"].get_ydata()) == [50] and "PPO reward" in lines(ax)


def test_rewards_of_a_D_g_without_D(tmp_path):
    folder = write(tmp_path / "run", made_up("toy"))
    for g in (1, 2):
        path = folder / "steps" / f"score-{g}"
        pairs = Pairs.load(path)
        shutil.rmtree(path)
        pairs.select(~pairs.human).append_to(path)
    ax, = figures.rewards(folder, made_up("toy")).axes
    assert set(lines(ax)) == {"mean of Grow 1", "mean of Grow 2", "threshold"}


def test_a_toy_shares_its_scale_and_a_translation_does_not():
    def limits(task):
        return [ax.get_ylim() for ax in figures.improve(made_up(task)).axes]
    assert limits("toy")[0] == limits("toy")[1]
    assert limits("mt")[0] != limits("mt")[1]


def test_best_of_n():
    results = made_up("mt")
    figure = figures.best_of_n(results)
    for ax, field, factor in zip(figure.axes, ("reward", "bleu"), (100, 1)):
        assert ax.get_xscale() == "log" and list(lines(ax)) == ["BC", "ReST"]
        for policy, line in lines(ax).items():
            mine = [e for e in results["best_of_n"] if e["policy"] == policy]
            np.testing.assert_array_equal(line.get_xdata(), [1, 2, 4, 8])
            np.testing.assert_allclose(line.get_ydata(), [factor * e[field] for e in mine])
    assert texts(figure.axes[0]) == ["BC 58.0", "ReST 78.0"]


def test_rewards_are_densities_with_their_means(tmp_path):
    folder = write(tmp_path / "run", made_up("toy"))
    (ax,) = figures.rewards(folder, made_up("toy")).axes
    assert {patch.get_label() for patch in ax.patches} == {"Grow 1", "Grow 2", "D, human"}
    for patch in ax.patches:
        corners = patch.get_xy()  # the outline closes on itself: the shoelace formula is its area
        x, y = corners[:, 0], corners[:, 1]
        area = abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
        assert area == pytest.approx(100, rel=1e-4)
        assert patch.get_fill() == (patch.get_label() != "D, human")
    for g in (1, 2):
        pairs = Pairs.load(folder / "steps" / f"score-{g}")
        mean = 100 * pairs.reward[~pairs.human].mean()
        np.testing.assert_allclose(lines(ax)[f"mean of Grow {g}"].get_xdata(), mean, rtol=1e-6)
        assert f"Grow {g}: mean {mean:.1f}" in texts(ax)


def test_rewards_show_the_line_of_each_filter_that_has_one_for_all_sources(tmp_path):
    """In its Grow's colour, at its Grow's height; not of BC, PPO or I = 0, which have none."""
    results = made_up("toy")
    folder = write(tmp_path / "run", results)
    ax, = figures.rewards(folder, results).axes
    drawn = [line for line in ax.lines if line.get_label() == "threshold"]
    np.testing.assert_allclose([line.get_xdata() for line in drawn],
                               np.repeat([60, 70, 60, 70], 2).reshape(4, 2))
    assert [line.get_color() for line in drawn] == 2 * [figures.GROWS[0]] + 2 * [figures.GROWS[1]]
    tops = [line.get_ydata()[1] for line in drawn]
    assert 0 < tops[0] == tops[1] < tops[2] == tops[3]
    assert [text for text in texts(ax) if text.startswith("τ")] == ["τ1", "τ2", "τ1", "τ2"]
    for row in results["rows"]:
        row["threshold"] = None
    ax, = figures.rewards(folder, results).axes
    assert "threshold" not in lines(ax) and not any("τ" in text for text in texts(ax))


def test_tradeoff():
    results = made_up("mt")
    results["rows"][2] |= {"val_bleu": 31.1, "val_reward": 0.52}  # a step that changed nothing
    results["rows"][3]["val_bleu"] = None
    (ax,) = figures.tradeoff(results).axes
    np.testing.assert_allclose(lines(ax)["ReST"].get_xdata(), [50, 52, 58, 60])
    np.testing.assert_allclose(lines(ax)["ReST"].get_ydata(), [31.5, 31.1, 29.9, 29.5])
    np.testing.assert_allclose(lines(ax)["PPO"].get_xydata(), [[62, 29.1]])
    assert set(texts(ax)) == {"BC", "1,0; 1,1", "2,1", "2,2", "PPO", "BC − 0.5"}
    (band,) = ax.patches
    assert band.get_y() == pytest.approx(31.0) and ax.get_ylim()[1] < band.get_y() + 5
    assert figures.tradeoff(made_up("toy")) is None


def test_what_is_missing_is_left_out(tmp_path, no_pngs):
    results = made_up("mt") | {"best_of_n": []}
    for row in results["rows"]:
        del row["val_bleu"], row["beam_bleu"]
    results["rows"][2]["reward"] = None
    reward, bleu = figures.improve(results).axes
    np.testing.assert_array_equal(lines(reward)["reward"].get_xdata(), [0, 1, 3, 4, 5])
    assert set(lines(bleu)) == {"bleu", "PPO bleu"}
    folder = write(tmp_path / "run", results, grows=0)
    assert figures.draw(folder) == [folder / "improve.png"]
    only_bc = {"task": "toy", "rows": results["rows"][:1]}
    assert len(figures.improve(only_bc).axes) == 2


def test_equal_ends_get_room():
    figure, (ax,) = figures.panels("test", 1, 4, 4)
    ax.set_ylim(0, 100)
    figures.label_ends(ax, [(50, "a", "k"), (50, "b", "k"), (51, "c", "k"), (90, "d", "k")], 0.1)
    places = [text.get_position()[1] for text in ax.texts]
    assert texts(ax) == ["a", "b", "c", "d"] and places[3] == 90
    assert min(np.diff(places)) > 9.9 and np.mean(places[:3]) == pytest.approx(151 / 3)


def test_command_line(tmp_path, monkeypatch, capsys, no_pngs):
    folder = write(tmp_path / "run", made_up("toy"))
    figures.main([str(folder)])
    assert capsys.readouterr().out.split() == [str(folder / f"{name}.png") for name in
                                               ("improve", "best_of_n", "rewards")]
    with pytest.raises(UserError):
        figures.draw(tmp_path)
    (folder / "results.json").write_text("{")
    for path, said in ((tmp_path, "holds no results.json"), (folder, "results.json: damaged")):
        monkeypatch.setattr(sys, "argv", ["figures", str(path)])
        with pytest.raises(SystemExit) as stop, pytest.warns(RuntimeWarning):  # is imported already
            runpy.run_module("infra.figures", run_name="__main__")
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1 and said in error


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it now fails
    assert figures.draw(write(tmp_path / "run", made_up("toy"))) == []
    assert not list((tmp_path / "run").glob("*.png"))
    assert figures.try_to_draw(tmp_path / "run") == "no figures: matplotlib is not installed"


@pytest.mark.parametrize("module", ["matplotlib", "matplotlib.figure", "PIL"])
def test_a_finished_run_does_not_fail_over_its_figures(tmp_path, monkeypatch, module):
    """One of the packages is there, but raises something when it is imported."""
    folder = write(tmp_path / "run", made_up("toy"))

    class Broken:
        def find_spec(self, name, path, target=None):
            if name == module:
                raise RuntimeError("built for\nanother numpy")

    for name in [name for name in sys.modules if f"{name}.".startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert figures.try_to_draw(folder) == (
        "no figures: matplotlib does not work: built for another numpy")


def test_a_run_that_cannot_be_drawn_says_why(tmp_path, no_pngs):
    folder = write(tmp_path / "run", made_up("toy"))
    assert figures.try_to_draw(folder) is None
    assert "results.json" in figures.try_to_draw(tmp_path)
    (folder / "results.json").write_text('{"task": "chess", "rows": [3]}')
    assert figures.try_to_draw(folder).startswith("no figures: TypeError: ")
