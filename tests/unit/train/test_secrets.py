"""What a config takes from the environment and must not hand on."""

from pathlib import Path

import pytest

from distsam.errors import InputError
from distsam.train.config_file import load_config, read_yaml, to_yaml
from distsam.train.same_run import fingerprint
from distsam.train.secrets import secrets_of

OWN = """
task:
  target: mine:make
  arguments:
    token: ${oc.env:STORE_TOKEN}
    store: https://store/?t=${.token}
    width: ${oc.decode:${oc.env:WIDTH}}
    words: [a, '${oc.env:WORD}']
train: {steps: 2}
wandb: {name: "${oc.env:WORD}"}
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {"STORE_TOKEN": "hunter2", "WIDTH": "3", "WORD": "blue"}.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "own.yaml"
    file.write_text(OWN)
    return file


def test_a_secret_is_used_but_written_nowhere(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert config.task.arguments == {
        "token": "hunter2",
        "store": "https://store/?t=hunter2",
        "width": 3,
        "words": ["a", "blue"],
    }
    shown = config.shown()
    assert shown["task"]["arguments"]["token"] == "${oc.env:STORE_TOKEN}"
    assert (shown["task"]["arguments"]["width"], shown["wandb"]["name"]) == (3, "blue")
    assert "hunter2" not in str(shown) + to_yaml(config) + repr(config.secrets)
    saved = tmp_path / "config.yaml"
    saved.write_text(to_yaml(config))
    assert load_config(saved).model_dump() == config.model_dump()
    assert "hunter2" not in str(read_yaml(saved))


def test_a_new_token_is_no_other_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(load_config(path))
    monkeypatch.setenv("STORE_TOKEN", "another")
    assert fingerprint(load_config(path)) == before
    monkeypatch.setenv("WORD", "red")
    assert fingerprint(load_config(path)) != before


def test_a_secret_that_is_no_longer_there_is_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORE_TOKEN")
    with pytest.raises(InputError, match=r"task.arguments.token: cannot be resolved: .*STORE_TOKEN"):
        load_config(path)


@pytest.mark.parametrize(
    ("key", "text", "value", "is_secret"),
    [
        ("password", "${oc.env:X}", "p", True),
        ("x", "${oc.env:DB_PASSWD}", "p", True),
        ("x", "${oc.env:WANDB_API_KEY}", "p", True),
        ("x", "${oc.env:GOOGLE_CREDENTIALS}", "p", True),
        ("p", "${oc.env:MYSQL_PASS}", "p", True),
        ("p", "${oc.env:SMTP_PWD}", "p", True),
        ("p", "${oc.env:GH_PAT}", "p", True),
        ("p", "${oc.env:JWT}", "p", True),
        ("dbPassword2", "${oc.env:X}", "p", True),
        ("p", "${oc.env:DATA_PATH}", "p", False),
        ("passes", "${oc.env:N}", "2", False),
        ("x", "${oc.env:STORE}", "https://me:word@host/a", True),
        ("x", "${oc.env:STORE}", "https://host/a", False),
        ("x", "${oc.env:STORE}", "https://t0k3n@host/a", True),
        ("x", "${oc.env:'API_TOKEN'}", "p", True),
        ("max_tokens", "${oc.env:N}", "128", False),
        ("tokenizer", "${oc.env:NAME}", "bpe", False),
        ("keyboard", "${oc.env:NAME}", "qwerty", False),
        ("password", "plainly written", "plainly written", False),
        ("token", "${run.dir}", "runs/a", False),
    ],
)
def test_what_looks_like_a_secret(key: str, text: str, value: str, is_secret: bool) -> None:
    assert secrets_of({"a": {key: text}}, {"a": {key: value}}) == ({("a", key): text} if is_secret else {})
