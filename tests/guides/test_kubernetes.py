"""The guide for Kubernetes: what it says to Vault is said to a real one, and its manifests agree with its settings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.guides import Reader, blocks
from tests.harness.issuer import Issuer, kubernetes_api
from tests.harness.openbao import openbao_server
from tests.harness.ostiary_process import command
from tests.harness.pki import Pki
from tests.harness.ports import free_port
from tests.harness.upstream import Upstream


@pytest.fixture
def manifests() -> list[dict[str, Any]]:
    marked = [block.text for block in blocks("kubernetes") if block.mark == "manifest"]
    return [one for text in marked for one in yaml.safe_load_all(text)]


def kind(manifests: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = (one for one in manifests if one.get("kind") == name)
    return found


def test_kubernetes(
    reader: Callable[..., Reader],
    upstream: Callable[..., Upstream],
    tmp_path: Path,
    pki: Pki,
    manifests: list[dict[str, Any]],
) -> None:
    api, port = upstream(lambda _, wire: wire.answer(200, b"hello\n"), names=("api.example.com",)), free_port()
    certificate = pki.certificate("127.0.0.1")
    minted = json.loads(command("key", "mint", "--workload", "app", cwd=tmp_path).stdout)
    with openbao_server(tmp_path / "bao") as bao, kubernetes_api(Pki.make(tmp_path / "cluster"), Issuer()) as cluster:
        one = reader(
            upstreams={"api.example.com:443": api.port},
            secrets=("first-key", bao.token, minted["key"]),
            written=("bao.log",),
            replaced={
                "0.0.0.0:8443": f"127.0.0.1:{port}",
                "127.0.0.1:9091": f"127.0.0.1:{free_port()}",
                "0.0.0.0:9090": f"127.0.0.1:{free_port()}",
                "https://vault.example.com:8200": bao.address,
                "https://kubernetes.example.com:6443": cluster.address,
                "/var/lib/ostiary": "state",
                "/var/run/secrets/vault/": "",
                "sha256:" + "0" * 64: minted["hash"],
            },
        )
        one.environment = {
            **one.environment,
            **{f"{tool}_{name}": value for tool in ("BAO", "VAULT") for name, value in (("ADDR", bao.address), ("TOKEN", bao.token))},
        }  # fmt: skip
        both = certificate.read_text()
        for name, text in {
            "cluster-ca.pem": cluster.ca,
            "reviewer.jwt": "reviewer",
            "tls.crt": both,
            "tls.key": both,
        }.items():
            (one.folder / name).write_text(text)
        found = blocks("kubernetes")
        one.follow([block for block in found if block.mark in {"settings", "policy"} or block.language == "sh"])
        # The pod: its token, its CA, and what its container runs.
        (one.folder / "token").write_text(cluster.token("egress", "ostiary"))
        one.type("mkdir run && mv ca run/ca && chmod 0440 run/ca/ca.key\n")
        pod = kind(manifests, "Deployment")["spec"]["template"]["spec"]
        (copies,) = pod["initContainers"]
        one.type(copies["command"][-1].replace("/var/lib/ostiary", "state").replace("/run/ca", "run/ca") + "\n")
        (said,) = (block.text for block in found if block.language == "text")
        told = one.type(re.findall(r"-- (ostiary check --live)", " ".join(block.text for block in found))[0])
        assert told.startswith(said.partition("…")[0])
        # Nobody else's token is good for it.
        (one.folder / "token").write_text(cluster.token("egress", "other"))
        one.type("ostiary check --live", fails=True)
        (one.folder / "token").write_text(cluster.token("egress", "ostiary"))
        before = len(cluster.reviewed)
        (container,) = pod["containers"]
        (server,) = [block._replace(language="sh", mark="server", text=" ".join(container["command"]) + "\n") for block in found[:1]]  # fmt: skip
        one.follow([server])
        proxied = f"curl -sS --cacert certs/ca.pem --proxy-cacert {pki.ca_file} -x https://app:{minted['key']}@127.0.0.1:{port} https://api.example.com/v1/things"  # fmt: skip
        assert [one.type(proxied) for _ in range(6)] == ["hello\n"] * 6
        # Both workers are logged in by one token of the pod.
        assert len(cluster.reviewed) == before + 1
        assert {seen.get("Authorization") for seen in api.requests} == {"Bearer first-key"}
        one.servers[0].stop()


def test_the_manifests_agree_with_the_settings(manifests: list[dict[str, Any]]) -> None:
    settings = yaml.safe_load(next(block.text for block in blocks("kubernetes") if block.mark == "settings"))
    deployment, service = kind(manifests, "Deployment"), kind(manifests, "Service")
    pod = deployment["spec"]["template"]["spec"]
    (ostiary,), (copies,) = pod["containers"], pod["initContainers"]
    for name, path in (("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        assert ostiary[name]["httpGet"] == {"path": path, "port": int(settings["admin"]["probes"].rpartition(":")[2])}
    assert ostiary["ports"][0]["containerPort"] == int(settings["listen"][0]["bind"].rpartition(":")[2])
    assert service["spec"]["ports"][0]["targetPort"] == ostiary["ports"][0]["name"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    # Every file that the settings name lies in a volume that is mounted; what is written lies in one that may be. Names are
    # relative to the settings, which lie with the files of both sources of one volume.
    mounted = {one["mountPath"]: one for one in ostiary["volumeMounts"]}
    volumes = {one["name"] for one in pod["volumes"]}
    assert {one["name"] for container in (ostiary, copies) for one in container["volumeMounts"]} == volumes
    named = (settings["listen"][0]["tls"]["cert"], settings["listen"][0]["tls"]["key"], settings["ca"]["dir"], settings["policies"][0], settings["vault"]["auth"]["jwt_file"])  # fmt: skip
    (own, *_), environment = mounted, {one["name"]: one["value"] for one in ostiary["env"]}
    assert environment["OSTIARY_CONFIG"].startswith(f"{own}/")
    for path in named:
        assert path[0] != "/" or any(path.startswith(f"{mount}/") for mount in mounted), path
    console = "".join(block.text for block in blocks("kubernetes") if block.language == "console")
    sources = next(one for one in pod["volumes"] if one["name"] == mounted[own]["name"])["projected"]["sources"]
    held = {"ostiary": ("ostiary.yaml", "policy.yaml"), "ostiary-tls": ("tls.crt", "tls.key")}
    assert [next(iter(one.values()))["name"] for one in sources] == list(held)
    for name, files in held.items():
        (line,) = (line for line in console.splitlines() if f" {name} " in line and " create " in line)
        assert all(file in line for file in files), line
    assert {path for path in named if path[0] != "/"} == {"policy.yaml", "tls.crt", "tls.key"}
    assert "readOnly" not in mounted["/var/lib/ostiary"]
    assert pod["terminationGracePeriodSeconds"] > int(settings["limits"]["drain_timeout"].rstrip("s"))
    # The projected token is the one that the settings read, and the service account the one that Vault's role is bound to.
    (projected,) = (one["projected"]["sources"] for one in pod["volumes"] if one["name"] == "vault-token")
    where = mounted["/var/run/secrets/vault"]["mountPath"]
    assert f"{where}/{projected[0]['serviceAccountToken']['path']}" == settings["vault"]["auth"]["jwt_file"]
    commands = "".join(block.text for block in blocks("kubernetes") if block.language == "sh")
    assert (
        f"SERVICE_ACCOUNT={pod['serviceAccountName']} SERVICE_NAMESPACE={deployment['metadata']['namespace']}"
        in commands
    )
    accounts = [one["metadata"]["name"] for one in manifests if one.get("kind") == "ServiceAccount"]
    assert accounts == [pod["serviceAccountName"], kind(manifests, "ClusterRoleBinding")["subjects"][0]["name"]]
    (sidecar,) = (one for one in manifests if "kind" not in one)
    assert sidecar["spec"]["volumes"][0]["projected"]["sources"] == projected
