"""What a figure was measured on: a commit is this repository's own or none."""

import subprocess

import pytest

from radar.tools import machine


@pytest.mark.parametrize("place", ["", ".venv/lib/site-packages"])
def test_the_commit_is_of_this_repository(tmp_path, monkeypatch, place):
    """Installed into an environment inside somebody else's repository, it is not that one's."""

    def git(*words):
        said = subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True, text=True)
        return said.stdout.strip()

    git("init", "-q")
    git("-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "--allow-empty", "-m", "m")
    file = tmp_path / place / "radar" / "tools" / "machine.py"
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(machine, "__file__", str(file))
    assert machine._commit() == ("unknown" if place else git("rev-parse", "HEAD"))
