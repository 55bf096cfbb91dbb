"""The files of deploy/ agree with one another and with the command line; nothing is built or started."""
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from thesis_ad.cli import app

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
SERVICES = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


def steps():
    "(instruction, arguments) of the Dockerfile, continued lines joined."
    text = re.sub(r"(?m)^#.*\n", "", (DEPLOY / "Dockerfile").read_text()).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def options(line):
    "(command, its options) in the words of a command line."
    words = line if isinstance(line, list) else line.split()
    return words[0], [word for word in words if str(word).startswith("--")]


def known(line):
    name, used = options(line)
    command = typer.main.get_command(app).commands[name]
    if name == "ledger": command = command.commands[line.split()[1]]
    return set(used) <= {option for parameter in command.params for option in parameter.opts}


def test_every_command_line_is_one_of_thesis_ad():
    command = yaml.safe_load(dict(steps())["CMD"])
    service = re.search(r"ExecStart=\S+/thesis-ad (.+)", (DEPLOY / "thesis-ad.service").read_text())[1]
    lines = [command, SERVICES["dashboard"]["command"], service,
        *re.findall(r"(?:`thesis-ad|exec \w+ thesis-ad|5010 api) ((?:stream|serve|dashboard|fit|ledger)[^`#\n]*)",
            (DEPLOY / "README.md").read_text())]
    assert len(lines) >= 12 and all(known(line) for line in lines), lines


def test_the_image_is_slim_and_does_not_run_as_root():
    found = steps()
    assert found[0][0] == "FROM" and "slim" in found[0][1] and dict(found)["USER"] == "station"
    order = [name for name, _ in found]
    assert order.index("USER") > max(k for k, name in enumerate(order)
        if name == "RUN"), "installs as root, runs as station"
    assert any("TORCH_INDEX" in arguments for name, arguments in found if name == "RUN") and "HEALTHCHECK" in order
    ignored = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    copied = [word for name, arguments in found if name == "COPY" for word in arguments.split()[:-1]]
    assert all(f"!{name}" in ignored and (DEPLOY.parent / name).exists() for name in copied)


def test_ports_volumes_and_secrets_fit_together():
    exposed = set(dict(steps())["EXPOSE"].split())
    published = [port for service in SERVICES.values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert exposed == {port.split(":")[2] for port in published} - {"1883"}
    assert SERVICES["api"]["volumes"] == SERVICES["dashboard"]["volumes"] == ["data:/data"]
    bundle = [word for word in yaml.safe_load(dict(steps())["CMD"]) + SERVICES["dashboard"]["command"]
        if str(word).startswith("/data/part")]
    assert len(bundle) == 2 and len(set(bundle)) == 1
    given = {line.split("=")[0] for line in (DEPLOY / "example.env").read_text().splitlines() if "=" in line}
    asked = {name for service in SERVICES.values() for name in service.get("environment", {})}
    assert given == asked | {*SERVICES["api"]["build"]["args"]} == {"THESIS_AD_SECRET_KEY",
        "THESIS_AD_TOKEN", "TORCH_INDEX"}


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_the_service_file_is_understood(tmp_path):
    unit = tmp_path / "thesis-ad.service"
    unit.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", (DEPLOY / "thesis-ad.service").read_text()))
    result = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert not [line for line in result.stderr.splitlines() if "thesis-ad.service" in line], result.stderr
