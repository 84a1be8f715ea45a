import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from meprop_bench.errors import Absent, UserError
from meprop_bench.tasks import build as build_module
from meprop_bench.tasks.build import Stream, call, check_name, find, is_model, seeded, source_of, unchanged
from meprop_bench.training import Training


def refused(action, *arguments):
    """Return the one line that a mistake gives."""
    with pytest.raises(UserError) as caught:
        action(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_names_of_models_and_of_tasks():
    assert all(map(is_model, ("my_model.py:build", "my_model.py", "package.module:build", "build@0123456789ab")))
    assert not any(map(is_model, ("mnist", "toy-pos")))


def test_a_file_a_module_and_the_usual_function(own_model, tmp_path, monkeypatch):
    name = own_model()
    assert isinstance(call(name, find(name), 0), Training)
    assert find(name.removesuffix(":build")) is find(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "models.py").write_text((tmp_path / "my_model.py").read_text())
    assert isinstance(call("a_package.models:build", find("a_package.models:build"), 0), Training)


def test_what_an_import_draws_is_the_same_in_every_process(own_model):
    """Else dense and sparsified, which are trained in different processes, would have other data."""
    lines = "import random\nimport numpy as np\nDATA = torch.rand(2).tolist(), random.random(), np.random.rand()\n"
    name = own_model(f"{lines}def build(): print(DATA)")
    code = f"from meprop_bench.tasks.build import find; find({name!r})()"
    shown = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(shown) == 1
    before = random.getstate(), torch.get_rng_state()
    find(name)
    assert random.getstate() == before[0]  # what else draws is left alone
    assert torch.equal(torch.get_rng_state(), before[1])


def test_modules_beside_a_file_are_found_and_a_known_name_hides_none(own_model, tmp_path):
    (tmp_path / "beside_it.py").write_text("WIDTH = 5\n")
    assert find(own_model("from beside_it import WIDTH\ndef build(): return WIDTH", "random.py"))() == 5
    assert random.random  # the standard library's own is still there


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.py:build", r"there is no file nothing\.py: name your model as path/to/file\.py:function"),
        ("my model:build", "'my model:build' is not a model: name it as"),
        ("package.:build", "is not a model"),
        ("{file}:", r"'' in .* is not the name of a function: write .*my_model\.py:build"),
        ("{file}:1st", "'1st' in .* is not the name of a function"),
        ("{file}:biuld", r"has no function 'biuld': did you mean 'build'\?"),
        ("{file}:zzz", "has no function 'zzz': define it, a function that returns a meprop_bench.Training"),
        ("{file}:X", "'X' in .* is not a function, but of type Tensor"),
        ("no_such_module:build", "there is no module 'no_such_module' to import from here"),
        ("os.no_such_module:build", "there is no module 'os.no_such_module' to import"),
        ("build@0123456789ab", "the pickled model .* does not exist any more"),
    ],
)
def test_what_is_not_there(own_model, name, message):
    found = refused(find, name.format(file=own_model().removesuffix(":build")))

    assert re.search(message, found), found


def test_what_is_not_there_is_told_from_what_fails(own_model):
    for name in ("nothing.py:build", f"{own_model()}_", "no_such_module:build"):
        with pytest.raises(Absent):
            find(name)
    with pytest.raises(UserError) as caught:
        find(own_model("1 / 0"))
    assert not isinstance(caught.value, Absent)


def test_a_function_that_is_no_model(own_model):
    name = own_model("def parse(text): return text.split()").replace(":build", ":parse")
    assert find(name, "function")("a b") == ["a", "b"]
    assert refused(find, "nothing.py:parse", "function").endswith("name your function as path/to/file.py:function")
    assert refused(find, name.replace(":parse", ":zzz"), "function").endswith("has no function 'zzz': define it")


def test_a_dictionary_is_a_training(own_model):
    fields = "model=nn.Linear(2, 2), loss=lambda model, x: model(x).sum(), batches=[torch.ones(3, 2)]"
    name = own_model(f"def build(): return dict({fields})")
    assert isinstance(call(name, find(name), 0), Training)
    for wrong, message in (
        ("loss=3, model=4, batches=5", "model must be a torch.nn.Module, not an int"),
        ("model=nn.Linear(2, 2)", "the dictionary that it returns has no loss, batches: add it"),
        (f"{fields}, metrik='loss'", "did you mean 'metric'"),
    ):
        name = own_model(f"def build(): return dict({wrong})", f"{abs(hash(wrong))}.py")
        assert message in refused(call, name, find(name), 0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("import sys\nsys.exit(3)", r"ends the program when it is imported \(exit 3\): put what runs"),
        ("raise SystemExit(build())", r"ends the program .* \(exit Training\(model=Sequential\(\): put what runs"),
        ("import no_such_package", r"cannot be imported \(my_model\.py, line \d+\): ModuleNotFoundError: No module"),
        ("def f(:", r"cannot be imported \(my_model\.py, line \d+\): SyntaxError"),
        ("1 / 0", r"cannot be imported \(my_model\.py, line \d+\): ZeroDivisionError: division by zero"),
        ("torch.set_num_threads(torch.get_num_threads() + 1)", r"changes torch's number of threads .*\(1 to 2\)"),
        ("torch.set_default_dtype(torch.float64)", r"changes torch's default dtype .* \(torch.float32 to"),
        ("os.chdir(os.sep)", "changes the working directory when it is imported"),
        ("torch.set_grad_enabled(False)", "changes whether torch computes gradients"),
        ("torch.autograd.set_detect_anomaly(True)", "changes whether torch looks for anomalies"),
        ("torch.use_deterministic_algorithms(True)", "changes whether torch is deterministic"),
        ("torch.set_float32_matmul_precision('medium')", "changes the precision of torch's matrix products"),
        ("torch.set_default_device('meta')", "changes torch's default device"),
    ],
)
def test_side_effects_of_an_import(own_model, lines, message):
    before = [state.read() for state in build_module._process_states()]
    found = refused(find, own_model(lines))
    assert [state.read() for state in build_module._process_states()] == before
    assert re.search(message, found), found
    assert "my_model.py" in found


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("def build(): return training(optimiser=None)", "unexpected keyword argument 'optimiser'"),
        ("def build(): return perceptron()", "returned Sequential: it has to return a meprop_bench.Training"),
        ("def build(): pass", "returned NoneType"),
        ("def build(width): return training()", "missing 1 required positional argument: 'width'"),
        ("def build(): raise SystemExit", "ends the program when it is called"),
        ("def build(): raise ValueError('first\\nsecond')", r"\(my_model\.py, line \d+\): ValueError: first$"),
        ("import random\ndef build(): random.choice([])", r"cannot be called \(my_model\.py, line \d+\): IndexError"),
        ("def build(): return training(model=3)", r"my_model\.py:build: model must be a torch.nn.Module, not an int"),
        ("def build(): return training(batches=iter([]))", "batches is a list_iterator, which runs out"),
    ],
)
def test_builds_that_fail(own_model, lines, message):
    name = own_model(lines)
    found = refused(call, name, find(name), 0)
    assert re.search(message, found), found
    assert found.count("my_model.py:build") == 1


def test_the_line_is_the_users_also_in_a_folder_of_our_name(own_model, tmp_path):
    (tmp_path / "meprop_bench").mkdir()
    name = own_model("def build(): raise ValueError('no')", "meprop_bench/my_model.py")
    assert "(my_model.py, line" in refused(call, name, find(name), 0)


def test_memory_that_runs_out_is_no_mistake_of_the_users(own_model):
    name = own_model("def build(): raise MemoryError('no room')")
    with pytest.raises(MemoryError):
        call(name, find(name), 0)
    name = own_model("def build(): return dict()['memory']", "other.py")  # this is one
    assert "KeyError: 'memory'" in refused(call, name, find(name), 0)


def test_sources_of_edited_files_differ(own_model):
    name = own_model()
    before = source_of(name)
    assert before == source_of(name)
    assert len(before) == 12
    own_model("# edited")
    assert source_of(name) != before
    assert source_of("os.path:join") is None
    check_name(name)


def draws():
    return torch.rand(2).tolist(), random.random(), np.random.rand()  # noqa: NPY002


def test_seeded_numbers_are_the_same_and_leave_the_others_alone():
    with seeded(3):
        first = draws()
    random.seed(5)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = draws()
    random.seed(5)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    with seeded(3):
        assert draws() == first
    with pytest.raises(ZeroDivisionError), seeded(4):
        _ = draws()[1] / 0
    assert draws() == before


class Noisy:
    def __iter__(self):
        for _ in range(4):
            yield draws()


def test_what_is_drawn_beside_a_stream_does_not_change_it():
    alone = list(Stream(Noisy(), 7))
    stream, mixed = Stream(Noisy(), 7), []
    for found in stream:
        mixed.append(found)
        draws()
    assert mixed == alone
    assert alone != list(Stream(Noisy(), 8))


_DATA = TensorDataset(torch.arange(12))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(_DATA, batch_size=4, shuffle=True),
        lambda: DataLoader(_DATA, batch_size=4, shuffle=True, num_workers=1),
        lambda: DataLoader(_DATA, batch_size=4, shuffle=True, num_workers=1, persistent_workers=True),
        lambda: DataLoader(_DATA, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1)),
        lambda: DataLoader(_DATA, 4, sampler=RandomSampler(_DATA, generator=torch.Generator().manual_seed(1))),
        lambda: DataLoader(
            _DATA, batch_sampler=BatchSampler(RandomSampler(_DATA, generator=torch.Generator()), 4, False)
        ),
    ],
    ids=["shuffle", "workers", "workers that stay", "generator", "sampler", "batch sampler"],
)
def test_a_shuffling_loader_has_the_same_order_for_the_same_seed(make):
    loader = make()

    def order(seed):
        return [number for (batch,) in Stream(loader, seed) for number in batch.tolist()]

    first = order(1)
    assert sorted(first) == list(range(12))
    assert order(2) != first
    assert order(1) == first
    assert [number for (batch,) in Stream(make(), 1) for number in batch.tolist()] == first  # of another process


def test_what_is_left_as_it_was_passes():
    with unchanged("my_model.py:build", "trained"):
        torch.manual_seed(1)


def test_names_are_known_without_torch():
    code = (
        "import sys; from meprop_bench.tasks.build import is_model, check_name, source_of; is_model('a:b');"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_function_is_found_without_torch_and_must_leave_the_working_directory(tmp_path):
    (tmp_path / "bench.py").write_text("import os\ndef f(): return 3\n")
    (tmp_path / "moves.py").write_text("import os\nos.chdir(os.sep)\n")
    code = (
        "import sys; from meprop_bench.tasks.build import find; assert find('bench.py:f', 'function')() == 3;"
        "assert not {'torch', 'numpy'} & set(sys.modules); find('moves.py:f', 'function')"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert "moves.py:f changes the working directory when it is imported" in found.stderr
