"""The device's settings, and how the process was started."""

import mindspore as ms
import pytest

from src.config.load import make_config
from src.errors import UserError
from src.launch import MPIRUN, MSRUN, RANK_TABLE, SIZES, launcher
from src.runtime import device, parallel
from src.runtime.parallel import Ranks, join_ranks
from src.weights.checkpoint import adapt_config


def settings(**runtime):
    return make_config({"runtime": runtime}).runtime


@pytest.fixture
def calls(monkeypatch):
    """A machine with two Ascends and two GPUs, as far as `use_device` sees; the calls that set something."""
    found = {}

    def note(name):
        return lambda *values, **named: found.update({name: (*values, *named.values())})

    for name in ("ascend", "gpu"):
        place = getattr(ms.device_context, name)
        monkeypatch.setattr(place, "is_available", lambda: True)
        monkeypatch.setattr(place, "device_count", lambda: 2)
    monkeypatch.setattr(ms, "set_device", note("device"))
    monkeypatch.setattr(ms, "set_deterministic", note("deterministic"))
    monkeypatch.setattr(ms.runtime, "set_memory", note("memory"))
    monkeypatch.setattr(ms, "set_context", lambda **values: found.update(values))
    return found


@pytest.fixture
def environment(monkeypatch):
    """Set the variables NAME=VALUE; no launcher has set others."""
    for name in ("MS_ROLE", *SIZES, "RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH", "RANK_ID", "DEVICE_ID"):
        monkeypatch.delenv(name, raising=False)

    def put(text):
        for pair in text.split():
            monkeypatch.setenv(*pair.split("="))

    return put


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ({}, {"device": ("Ascend",)}),
        ({"device": "gpu"}, {"device": ("GPU",)}),
        ({"device": "gpu", "device_id": 1}, {"device": ("GPU", 1)}),
        ({"memory_limit": "7.5GB"}, {"device": ("Ascend",), "memory": ("7.5GB",)}),
        ({"deterministic": True}, {"device": ("Ascend",), "deterministic": (True,)}),
        ({"jit_level": "O2"}, {"device": ("Ascend",), "jit_config": {"jit_level": "O2"}}),
        ({"jit_level": "O1", "device": "gpu"}, {"device": ("GPU",), "jit_config": {"jit_level": "O1"}}),
        ({"deterministic": True, "device": "cpu"}, {}),
    ],
)
def test_settings_reach_mindspore(calls, runtime, expected):
    device.use_device(settings(**runtime))
    assert calls.pop("mode") == ms.GRAPH_MODE
    assert calls == expected


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"device": "cpu", "device_id": 0}, r"device_id: has no effect on a CPU \(found 0, expected null\); leave it"),
        ({"device": "cpu", "memory_limit": "1GB"}, r"memory_limit: has no effect on a CPU \(found 1GB"),
        ({"device": "cpu", "jit_level": "O0"}, r"jit_level: has no effect on a CPU \(found O0"),
        (
            {"device": "gpu", "jit_level": "O2"},
            r"jit_level: O2 is supported on Ascend only \(found gpu\); use O0 or O1",
        ),
        ({"device_id": 2}, r"device_id: 2 is not available here \(found 2 devices, from 0\)"),
    ],
)
def test_a_setting_that_the_device_does_not_have_is_refused(calls, runtime, message):
    with pytest.raises(UserError, match=f"runtime.{message}"):
        device.use_device(settings(**runtime))
    assert not calls


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"memory_limit": "30"}, "memory_limit: '30' is not a size above 0 in GB, such as 30GB"),
        ({"memory_limit": "0.0GB"}, "memory_limit: '0.0GB' is not a size above 0"),
        ({"memory_limit": "030GB"}, "memory_limit: '030GB' is not a size"),
        ({"memory_limit": "30 GB"}, "memory_limit: '30 GB' is not a size"),
        ({"device_id": -1}, "device_id: -1 must be greater than or equal to 0"),
        ({"jit_level": "O3"}, "jit_level: 'O3' is not one of O0, O1, O2"),
        ({"jit_level": "O1", "mode": "pynative"}, "jit_level: is used with runtime.mode=graph only"),
        ({"norm_precision": "float16"}, "norm_precision: float16 is used with runtime.precision=float16 only"),
        ({"norm_precision": "float16", "precision": "bfloat16"}, "norm_precision: float16 is used with .*=bfloat16"),
    ],
)
def test_a_wrong_value_is_refused(runtime, message):
    with pytest.raises(UserError, match=f"runtime.{message}"):
        settings(**runtime)


@pytest.mark.parametrize("limit", ["30GB", "7.5GB", "0.5GB"])
def test_mindspore_accepts_every_size_that_the_schema_accepts(limit):
    assert settings(memory_limit=limit).memory_limit == limit
    ms.runtime.memory._check_memory_conf_valid(limit)


@pytest.mark.parametrize(
    ("level", "arguments"),
    [(None, {}), ("O1", {"jit_level": "O1", "backend": "ms_backend"}), ("O2", {"backend": "GE"})],
)
def test_the_level_reaches_the_compiler(monkeypatch, level, arguments):
    monkeypatch.setattr(ms.context, "get_jit_config", lambda: {"jit_level": level})
    monkeypatch.setattr(ms, "jit", lambda function, **named: named)
    assert device.compile_graph(len) == arguments


def test_a_checkpoint_does_not_bring_the_settings_of_another_machine():
    trained = make_config(
        {"runtime": {"device_id": 3, "memory_limit": "30GB", "deterministic": True, "jit_level": "O2"}}
    )
    runtime = adapt_config(trained, []).runtime
    assert (runtime.device_id, runtime.memory_limit, runtime.deterministic, runtime.jit_level) == (None,) * 2 + (
        False,
        None,
    )
    assert adapt_config(trained, ["runtime.device_id=1"]).runtime.device_id == 1


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ("", None),
        ("OMPI_COMM_WORLD_SIZE=1 RANK_SIZE=1", None),
        ("MS_ROLE=MS_WORKER", MSRUN),
        ("MS_ROLE=MS_WORKER OMPI_COMM_WORLD_SIZE=8", MSRUN),  # MindSpore prefers msrun's variables too
        ("OMPI_COMM_WORLD_SIZE=8", MPIRUN),
        ("PMI_SIZE=2", MPIRUN),
        ("RANK_TABLE_FILE=t.json", RANK_TABLE),
        ("MINDSPORE_HCCL_CONFIG_PATH=t.json", RANK_TABLE),
        ("RANK_SIZE=8", RANK_TABLE),
    ],
)
def test_the_launcher_is_recognised(environment, variables, expected):
    environment(variables)
    assert launcher() == expected


@pytest.mark.parametrize(
    ("name", "variables", "started_by", "expected"),
    [
        ("ascend", "", MSRUN, ("Ascend",)),  # MindSpore chooses
        ("ascend", "OMPI_COMM_WORLD_LOCAL_RANK=1", MPIRUN, ("Ascend", 1)),
        ("gpu", "OMPI_COMM_WORLD_LOCAL_RANK=0", MPIRUN, ("GPU", 0)),
        ("ascend", "DEVICE_ID=1", RANK_TABLE, ("Ascend", 1)),
    ],
)
def test_each_rank_takes_its_own_device(calls, environment, name, variables, started_by, expected):
    environment(variables)
    device.use_device(settings(device=name), started_by=started_by)
    assert calls["device"] == expected


@pytest.mark.parametrize(
    ("runtime", "variables", "started_by", "message"),
    [
        ({"device": "cpu"}, "", MPIRUN, r"mpirun: .* \(found CPU, expected Ascend, GPU\); start the ranks with: msrun"),
        ({"device": "cpu"}, "", RANK_TABLE, r"RANK_TABLE_FILE: .* \(found CPU, expected Ascend\); start .* msrun"),
        ({"device": "gpu"}, "DEVICE_ID=0", RANK_TABLE, r"RANK_TABLE_FILE: .* \(found GPU, expected Ascend\)"),
        ({}, "", RANK_TABLE, "RANK_TABLE_FILE: the environment variable DEVICE_ID is missing or wrong .* msrun"),
        ({}, "OMPI_COMM_WORLD_LOCAL_RANK=a", MPIRUN, "mpirun: .* OMPI_COMM_WORLD_LOCAL_RANK is missing or wrong .*'a'"),
        ({"device_id": 1}, "", MSRUN, r"runtime.device_id: each of several ranks has another device \(found 1"),
    ],
)
def test_ranks_that_cannot_be_connected_are_refused(calls, environment, runtime, variables, started_by, message):
    environment(variables)
    with pytest.raises(UserError, match=message):
        device.use_device(settings(**runtime), started_by=started_by)
    assert not calls


@pytest.mark.parametrize("variables", ["OMPI_COMM_WORLD_SIZE=2", "RANK_TABLE_FILE=t.json RANK_ID=1"])
def test_ranks_join_through_mindspore(environment, monkeypatch, variables):
    environment(variables)
    monkeypatch.setattr(parallel, "init", lambda: None)
    monkeypatch.setattr(parallel, "get_rank", lambda: 1)
    monkeypatch.setattr(parallel, "get_group_size", lambda: 2)
    monkeypatch.setattr(ms, "set_auto_parallel_context", lambda **context: None)
    assert join_ranks() == Ranks(1, 2)

    def fail():
        raise RuntimeError("no library\n\nC++ Call Stack")

    monkeypatch.setattr(parallel, "init", fail)
    with pytest.raises(UserError, match="MindSpore cannot connect the ranks: no library; start the ranks with: msrun"):
        join_ranks()


@pytest.mark.parametrize(
    ("saved", "started", "message"),
    [
        (
            {"memory_limit": "30GB"},
            {},
            r"memory_limit: .* \(found None, expected 30GB\); .* add runtime.memory_limit=30GB",
        ),
        ({"deterministic": True}, {}, "add runtime.deterministic=True to --resume"),
        ({"device_id": 1}, {}, "use runtime.device_id=null"),
    ],
)
def test_ranks_that_have_joined_keep_their_settings(saved, started, message):
    with pytest.raises(UserError, match=message):
        device.keep_device(settings(**saved), 0, settings(**started))


@pytest.mark.slow
@pytest.mark.parametrize("variables", ["OMPI_COMM_WORLD_SIZE=2", "RANK_TABLE_FILE=t.json"])
def test_ranks_that_a_cpu_cannot_connect_do_not_train_alone(environment, command, tmp_path, variables):
    environment(variables)
    (tmp_path / "c.yaml").write_text("data: {name: digits, image_size: 8, channels: 1}\n")
    done = command("train.py", "--config", "c.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "msrun --worker_num=N" in done.stderr
