import math

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.settings import KEYS, Settings, load_settings, matches


def write(folder, text):
    (folder / "pyproject.toml").write_text(text)
    return folder


def test_without_a_file_or_a_table_the_defaults_hold(tmp_path):
    assert load_settings(tmp_path) == Settings()
    assert load_settings(write(tmp_path, "[tool.other]\n")) == Settings()


def test_everything_can_be_set_and_options_take_its_place(tmp_path):
    text = """
        [tool.meprop-bench.gate]
        preset = "smoke"
        cases = ["linear *"]
        margin = 0.02
        accuracy-margin = 1
        least-time = 1e-6
        least-memory = 4096
        report-only = ["*/update"]
        budget = 30
        pairs = 8
        confidence = 0.99
        process-noise = 0.02
        [tool.meprop-bench.gate.margins]
        "*/peak memory*" = 0.05
        [tool.meprop-bench.gate.accuracy-margins]
        "mlp *" = 0.3
    """
    found = load_settings(write(tmp_path, text), margin=0.03, budget=None)
    assert (found.preset, found.cases, found.margin, found.budget, found.pairs) == ("smoke", ("linear *",), 0.03, 30, 8)
    assert found.margins == {"*/peak memory*": 0.05}
    assert found.accuracy_margins == {"mlp *": 0.3}
    assert found.alpha == pytest.approx(0.005)
    assert set(KEYS) >= {"least-time", "report-only", "accuracy-margins"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("margn = 0.01", "did you mean 'margin'?"),
        ("least_time = 1", "did you mean 'least-time'?"),
        ("margin = '1%'", "margin in [tool.meprop-bench.gate] must be a number"),
        ("margin = true", "must be a number"),
        ("margin = nan", "must be a number"),
        ("margin = -0.1", "margin must be a number of at least 0"),
        ("pairs = 2.5", "must be an integer"),
        ("pairs = 1", "one pair gives no interval"),
        ("budget = 0", "budget must be more than 0"),
        ("confidence = 95", "0.95 for 95%"),
        ("cases = 'linear'", "must be a list of globs"),
        ("cases = []", "cases is empty"),
        ("cases = [1]", "must be a list of globs"),
        ("margins = 0.1", "must be a table"),
        ("margins = {a = 'x'}", "must be a table"),
        ("margins = {a = -1}", "margins.a must be"),
        ("preset = 3", "must be a name"),
        ("window = 7", "window must be an integer of at least 8"),
        ("window = 20.5", "window in [tool.meprop-bench.gate] must be an integer"),
        ("allow-inconclusive = 1", "a share from 0 to below 1, or percent as in 1%, not 1"),
        ("allow-inconclusive = '101%'", "allow-inconclusive must be a share"),
        ("allow-inconclusive = 'few'", "allow-inconclusive must be a share"),
        ("allow-inconclusive = []", 'must be a share, 0.01 or "1%"'),
    ],
)
def test_what_is_wrong_is_one_line(line, words, tmp_path):
    with pytest.raises(UserError) as caught:
        load_settings(write(tmp_path, f"[tool.meprop-bench.gate]\n{line}\n"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    "text", ["[tool.meprop-bench\n", "tool = 1\n", "[tool]\nmeprop-bench = 1\n", "[tool.meprop-bench]\ngate = 1\n"]
)
def test_a_file_that_is_not_sound(text, tmp_path):
    with pytest.raises(UserError, match=r"TOML|not a table"):
        load_settings(write(tmp_path, text))


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "pyproject.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not TOML"):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("*", True),
        ("linear *", True),  # the case
        ("backward", True),  # the figure
        ("*/backward", True),
        ("*/forward", False),
        ("linear [k=10]", True),  # written out, brackets and all
        ("linear [k=10]/backward", True),
        ("linear ?k=10?", True),
        ("LINEAR *", False),
    ],
)
def test_globs(glob, found):
    assert matches(glob, "linear [k=10]", "backward") is found


def test_the_last_margin_that_matches_wins():
    settings = Settings(margins={"*": 0.5, "a/*": 0.2, "*/step": 0.1}, accuracy_margins={"a": 2})
    assert settings.margins_of(["a"], "backward", "time") == 0.2
    assert settings.margins_of(["a"], "step", "time") == 0.1
    assert settings.margins_of(["b"], "flops", "count") == 0.5
    assert settings.margins_of(["a"], "accuracy", "accuracy") == 2  # a share of the time is no margin in points
    assert settings.margins_of(["b"], "accuracy", "accuracy") == Settings().accuracy_margin


def test_a_glob_that_matches_nothing_is_told():
    settings = Settings(margins={"a/*": 0.1, "z/*": 0.1}, report_only=("upd",), accuracy_margins={"*": 1})
    assert settings.idle_globs({("a", "update"): None}) == [
        "'z/*' of margins matches no figure",
        "'upd' of report-only matches no figure",
    ]


@pytest.mark.parametrize(("given", "share"), [(0, 0.0), (0.02, 0.02), ("2%", 0.02), (" 0.5 % ", 0.005), ("100%", 1.0)])
def test_how_much_may_be_inconclusive(given, share):
    found = Settings(allow_inconclusive=given)
    assert found.inconclusive_allowed() == found.inconclusive_allowed(history=True) == pytest.approx(share)


def test_nothing_may_be_inconclusive_but_of_a_history():
    assert Settings().inconclusive_allowed() == 0
    assert Settings().inconclusive_allowed(history=True) == 0.01


def test_a_case_is_measured_for_any_figure_that_may_be_judged():
    assert Settings(cases=("*/peak memory backward",)).measured("linear")
    assert Settings(cases=("accuracy",)).measured("linear")
    assert not Settings(cases=("mlp*",)).measured("linear")


def test_infinite_margins_are_refused():
    with pytest.raises(UserError, match="at least 0"):
        Settings(margin=math.inf)


def test_the_margin_is_by_quantity_unless_one_is_given():
    usual = Settings()
    assert [usual.margins_of(["a"], "b", quantity) for quantity in ("time", "ratio", "memory", "count")] == [
        0.045,
        0.075,
        0.01,
        0.01,
    ]
    given = Settings(margin=0.2)
    for quantity in ("time", "ratio", "memory", "count"):
        assert given.margins_of(["a"], "b", quantity) == 0.2
    assert usual.usual_margin("accuracy") == usual.accuracy_margin
