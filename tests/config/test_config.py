import pytest
import yaml

from src.config.load import load_config, make_config
from src.config.yaml_text import parse_yaml
from src.errors import UserError
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
# YAML that describes a list of 9**12 elements in a few lines.
NESTED_ALIASES = b"x:\n- &l0 [0]\n" + b"".join(
    b"- &l%d [%s]\n" % (i, b", ".join([b"*l%d" % (i - 1)] * 9)) for i in range(1, 13)
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_configs_load_and_their_comments_give_command_source_and_result(path):
    load_config(path)
    load_config(path, ["train.epochs=1", "schedule.warmup_epochs=0"])
    head = path.read_text().split("\nmodel:")[0]
    assert f"python train.py --config {path.relative_to(ROOT)}" in head
    assert "https://arxiv.org/abs/" in head
    assert "Expect:" in head


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_written_config_is_read_back_unchanged(path, tmp_path):
    config = load_config(path)
    written = tmp_path / "config.yaml"
    written.write_text(config.to_yaml())
    assert load_config(written) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.nme=x", "model.nme: unknown key; did you mean model.name?"),
        ("modle.name=x", "command line: modle: unknown key; did you mean model?"),
        ("model.name=shuflenet_v2", "did you mean shufflenet_v2?"),
        ("model.name=3", "model.name: 3 must be a valid string"),
        ("model.width=0.9", "model.width: 0.9 is not one of 0.5, 1.0, 1.5, 2.0"),
        ("model.width='1'", "model.width: '1'"),
        (
            "model.groups=3",
            "model.groups: is used with model.name=shufflenet_v1 only (found model.name=shufflenet_v2); leave it out",
        ),
        ("model.layout=equal", "model.layout: equal is not one of authors, equal_split; did you mean equal_split?"),
        ("model.name=mindcv/mobilnet_v1_025", "is not a network of mindcv; did you mean mindcv/mobilenet_v1_025?"),
        ("train.recalibrate=-1", "train.recalibrate: -1 is not auto, or a number of batches (0 to 1e9)"),
        ("train.recalibrate=always", "train.recalibrate: 'always' is not auto, or a number of batches (0 to 1e9)"),
        ("train.recalibrate=true", "train.recalibrate: True is not auto, or a number of batches (0 to 1e9)"),
        ("model.freeze=head", "model.freeze: 'head' is not one of none, backbone"),
        ("model.freeze=-1", "model.freeze: -1 is not none, backbone, or a number of blocks (at least 0)"),
        ("model.freeze=true", "model.freeze"),
        ("model.stem_stride=3", "model.stem_stride: 3 is not one of 1, 2"),
        ("model.stem_stride=true", "model.stem_stride: True"),
        ("model.dropout=1", "model.dropout: 1"),
        ("data.name=cifar", "data.name: 'cifar' is not one of digits, mnist, fashion_mnist, cifar10"),
        ("data.name=image_folder", "data.root: must be given with data.name=image_folder"),
        ("data.root=x", "data.root: is not used with data.name=digits (found 'x')"),
        ("data.mean=[0.5]", "data.mean: [0.5] has 1 numbers, but data.channels is 3"),
        ("data.std=[0, 1, 1]", "data.std:"),
        ("data.workers=0", "data.workers: 0"),
        ("data.download=true", "data.download: is supported for mnist, fashion_mnist, cifar10, cifar100 only (found"),
        ("data.val_fraction=0.1", "data.val_fraction: is supported for image folders only (found data.name=digits)"),
        ("data.on_bad_image=skip", "data.on_bad_image: is supported for image files only (found data.name=digits)"),
        ("data.on_bad_image=ignore", "data.on_bad_image: 'ignore' is not one of error, skip"),
        ("augment.crop=padd", "did you mean pad?"),
        (
            "augment.padding=3",
            "augment.padding: is used with augment.crop=pad only (found augment.crop=resized); leave it out",
        ),
        (
            "augment.scale=[1, 0.1]",
            "augment.scale: [1.0, 0.1] must be two numbers above 0 in ascending order, at most 1.0",
        ),
        ("train.epochs=2.5", "train.epochs: 2.5"),
        ("train.epochs=yes", "train.epochs: True"),
        ("train.epochs=100000000000000000000000", "train.epochs: 100000000000000000000000 must be less"),
        ("train.batch_size=1", "train.batch_size: 1"),
        ("train.label_smoothing=1.0", "train.label_smoothing: 1.0"),
        ("optimizer.lr=.nan", "optimizer.lr: nan"),
        ("optimizer.lr=.inf", "optimizer.lr: inf"),
        ("optimizer.lr=fast", "optimizer.lr: 'fast'"),
        ("optimizer.momentum=1", "optimizer.momentum: 1"),
        ("optimizer.name=sgdm", "optimizer.name: 'sgdm' is not one of sgd, rmsprop, adamw, lamb, lion"),
        ("schedule.name=cosin", "schedule.name: 'cosin' is not one of cosine, linear"),
        ("schedule.warmup_epochs=31", "schedule.warmup_epochs: 31.0 must be at most train.epochs, 30"),
        ("runtime.device=gpuu", "runtime.device: 'gpuu' is not one of auto, cpu, gpu, ascend; did you mean gpu?"),
        ("train.epochs", "train.epochs: is not an override; write section.key=value"),
        ("epochs=1", "epochs=1: is not an override; write section.key=value"),
        ("train.epochs=[1", "is not valid YAML"),
        ("train.epochs=010", "train.epochs=010: 010 is an octal number in YAML; write 10 (or 8, the octal value)"),
        ("train.epochs=-0_17", "write -17 (or -15, the octal value)"),
        ("train.epochs=1:30", "train.epochs=1:30: 1:30 is a base-60 number in YAML; write 90, or put a text in quotes"),
        ("optimizer.lr=1:30.5", "1:30.5 is a base-60 number in YAML; write 90.5"),
        ("run.dir=no", "run.dir: must be a text (found False: YAML reads yes, no, on and off so); put it in quotes"),
        ("train.epochs=2026-11-24", "train.epochs: '2026-11-24' must be a valid integer"),
    ],
)
def test_an_error_in_an_override_names_it(override, message):
    with pytest.raises(UserError) as caught:
        make_config({}, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"train:\n  epochs: 1\n  epochs: 2\n", "duplicate key 'epochs' (line 3"),
        (b"- 1\n", "must contain sections with settings, such as `model:` (found [1])"),
        (b"train: 3\n", "train: 3 must be a section"),
        (b"train:\n", "train: None must be a section"),
        (b"train: {epochs: 1\n", "is not valid YAML"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"train: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
        (b"1: {a: 2}\n", "key 1 is not a string"),
        (b"train: {epochs: 2026-99-99}\n", "train.epochs: '2026-99-99' must be a valid integer"),
        (b"train:\n  epochs: 010\n", "config.yaml: 010 is an octal number in YAML; write 10 (or 8, the octal value)"),
        (b"train: {epochs: !!timestamp x}\n", "a value does not fit its tag"),
        (b"train: {epochs: !!bool x}\n", "a value does not fit its tag"),
        (b"train: {epochs: !!int ''}\n", "a value does not fit its tag"),
        (b"[" * 1200, "config.yaml: is"),
        (NESTED_ALIASES, "x: unknown key"),
        (NESTED_ALIASES.replace(b"x:", b"train:"), "train: [["),
    ],
)
def test_an_error_in_a_file_names_the_file(text, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_error_for_a_missing_file_names_it(tmp_path):
    with pytest.raises(UserError, match="nowhere.yaml: No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_numbers_are_read_as_in_yaml_1_2():
    assert make_config({}, ["optimizer.lr=1e-3"]).optimizer.lr == 0.001
    assert make_config({}, ["optimizer.weight_decay=4E-5"]).optimizer.weight_decay == 4e-5


def test_a_later_override_replaces_the_file_and_an_earlier_override(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"train": {"epochs": 7, "seed": 5}}))
    config = load_config(path, ["train.epochs=8", "train.epochs=9"])
    assert (config.train.epochs, config.train.seed) == (9, 5)


def test_padding_is_for_networks_that_mindcv_pads():
    assert make_config({}).model.padding is None
    assert make_config({"model": {"name": "ghostnet", "padding": "symmetric"}}).model.padding == "symmetric"
    with pytest.raises(
        UserError, match=r"model.padding: same is used with model.name=shufflenet_v1, .* \(found model.name=ghostnet"
    ):
        make_config({"model": {"name": "ghostnet", "padding": "same"}})


def test_layout_is_for_shufflenet_v2_only():
    assert make_config({}).model.layout == "authors"
    with pytest.raises(
        UserError, match=r"model.layout: is used with model.name=shufflenet_v2 only \(found model.name=ghostnet\)"
    ):
        make_config({"model": {"name": "ghostnet", "layout": "authors"}})


def test_mindcv_networks_do_not_support_settings_of_our_networks():
    with pytest.raises(UserError, match="dropout: 0.2 is not supported by mindcv's networks"):
        make_config({"model": {"name": "mindcv/resnet18", "dropout": 0.2}})
    with pytest.raises(UserError, match="optimizer.head_lr: 0.2 is not supported by mindcv's networks"):
        make_config({"model": {"name": "mindcv/resnet18"}, "optimizer": {"head_lr": 0.2}})


def test_allowed_group_counts_are_the_counts_of_the_paper():
    assert make_config({"model": {"name": "shufflenet_v1"}}).model.groups == 3
    with pytest.raises(UserError, match="groups: 5 is not one of 1, 2, 3, 4, 8"):
        make_config({"model": {"name": "shufflenet_v1", "groups": 5}})


@pytest.mark.parametrize("text", ["010", "1:30", "no", "2026-11-24", "1e-4"])
def test_a_text_in_quotes_stays_a_text(text):
    assert make_config({}, [f'run.dir="{text}"']).run.dir == text


@pytest.mark.parametrize("value", [0, 7, 10, 0x1F, 1_000, -3, 0.5, 1e-4, 2e10])
def test_numbers_that_python_writes_are_read_as_they_are(value):
    assert parse_yaml(str(value), source="x") == value


def test_a_date_is_a_text():
    assert make_config({}, ["run.dir=2026-11-24"]).run.dir == "2026-11-24"
