from pathlib import Path

import pytest

from reasonseg import InputError
from reasonseg.config import schema as config
from reasonseg.config.model import ModelSettings
from reasonseg.config.training import TrainSettings, read_run

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").glob("*.yaml"))
LAUNCHES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


def test_there_are_configs():
    found = [p for p in (ROOT / "configs").rglob("*") if p.suffix in (".yaml", ".yml")]
    assert FILES and LAUNCHES and len(FILES) + len(LAUNCHES) == len(found)


@pytest.mark.parametrize("file", LAUNCHES, ids=lambda f: f.stem)
def test_every_launch_is_accelerates(file):
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    launch = load_config_from_file(str(file))
    assert isinstance(launch, ClusterConfig) and launch.num_processes == 8 * launch.num_machines


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_config_reads_and_dumps_to_itself(file):
    settings = read_run(file)
    assert config.parse(TrainSettings, config.dump(settings)) == settings


@pytest.mark.parametrize(
    "override, words",
    [
        ("worker=3", "no setting 'worker'; did you mean 'workers'"),
        ("data.sise=3", "data: no setting 'sise'; did you mean 'size'"),
        ("model.decoder.kind=samm", "no decoder 'samm'; did you mean 'sam'"),
        ("stages.tower.step=3", "stages.tower: no setting 'step'; did you mean 'steps'"),
        ("data.size=big", "data.size: expected int, got 'big'"),
        ("bf16=7", "bf16: expected bool"),
        ("model.prompter.at=on", "prompter.at"),
        ("workers", "is not an override"),
        ("stages.tower.objective=dens", "no objective 'dens'"),
        ("workers.a=3", "has no settings of its own"),
    ],
)
def test_mistakes_name_the_place_and_the_nearest(override, words):
    with pytest.raises(InputError, match=words):
        read_run(ROOT / "configs" / "tiny.yaml", [override])


def test_overrides_lie_over_the_file():
    settings = read_run(ROOT / "configs" / "tiny.yaml", ["stages.tower.lr=1e-4", "data.size=96"])
    assert settings.stages["tower"].lr == 1e-4 and settings.data.config.size == 96


def test_a_new_kind_drops_the_old_settings():
    tree = config.override({"decoder": {"kind": "sam", "network": {"a": 1}}}, ["decoder.kind=sam2"])
    assert tree == {"decoder": {"kind": "sam2"}}


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        config.read(tmp_path / "no.yaml")
    (tmp_path / "a.yaml").write_text("a: [1", encoding="utf-8")
    with pytest.raises(InputError, match="not valid YAML"):
        config.read(tmp_path / "a.yaml")


def test_a_kind_must_be_said():
    with pytest.raises(InputError, match="say a kind, one of"):
        config.parse(ModelSettings, {"backbone": {}})
