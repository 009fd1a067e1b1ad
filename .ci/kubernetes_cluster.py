"""`kubectl` for the commands of docs/kubernetes.md, where there is no cluster: one node, on which pods are processes of the program,
with the arguments, settings, secrets, volumes, user, network and read-only root file system that their manifests say, and whose probes
are asked. Nothing is scheduled, limited or evicted here, and no network policy is enforced.

`.ci/kubernetes` calls it in namespaces of its own, which take all of it with them when they end. CLUSTER is a folder for what it
knows, PROGRAM the executable that the images hold, KUSTOMIZE a real `kubectl`.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import yaml

CLUSTER = pathlib.Path(os.environ["CLUSTER"])
CONTROLLERS = ["StatefulSet", "Deployment", "Job"]
PATIENCE = 90  # seconds


def fail(message):
    sys.exit(f"kubectl: {message}")


# What is known: one file an object, one folder a secret.


def path_of(kind, name):
    return CLUSTER / "objects" / f"{kind.lower()}-{name}.json"


def stored(kind, name=None):
    found = [json.loads(file.read_text()) for file in sorted((CLUSTER / "objects").glob(f"{kind.lower()}-*.json"))]
    return [each for each in found if each["kind"] == kind and name in (None, each["metadata"]["name"])]


def one(kind, name):
    found = stored(kind, name)
    return found[0] if found else fail(f"no {kind} {name}")


def store(each):
    file = path_of(each["kind"], each["metadata"]["name"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(each))
    print(f"{each['kind'].lower()}/{each['metadata']['name']} applied")


def controller(named):
    kind, name = named.split("/", 1)
    return one(next((known for known in CONTROLLERS if known.lower() == kind), kind), name)


# Pods: a folder each, with what runs, its number, its log, and whether it had to be killed.


def pods(each):
    name, count = each["metadata"]["name"], each["spec"].get("replicas", 1)
    return [CLUSTER / "pods" / f"{name}-{index}" for index in range(count)]


def running(pod):
    supervisor = pod / "supervisor"
    return supervisor.exists() and pathlib.Path("/proc", supervisor.read_text()).exists()


def secrets_of(spec):
    for volume in spec.get("volumes", []):
        if "secret" in volume:
            yield volume["secret"]["secretName"]
        for source in volume.get("projected", {}).get("sources", []):
            yield source["secret"]["name"]


def start(each, pod):
    spec = each["spec"]["template"]["spec"]
    missing = [name for name in secrets_of(spec) if not (CLUSTER / "secrets" / name).is_dir()]
    if missing or running(pod) or (pod / "complete").exists():
        return
    pod.mkdir(parents=True, exist_ok=True)
    number = pod / "number"
    if not number.exists():
        number.write_text(str(len(list((CLUSTER / "pods").iterdir())) + 10))
    (pod / "object").write_text(json.dumps(each))
    with open(pod / "log", "a") as log:
        command = [sys.executable, __file__, "_supervise", str(pod)]
        started = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    (pod / "supervisor").write_text(str(started.pid))


def stop(pod):
    if not running(pod):
        return
    os.kill(int((pod / "supervisor").read_text()), signal.SIGTERM)
    while running(pod):
        # It is this process' child if nobody waits for it.
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pass
        time.sleep(0.05)
    # What is not a claim's goes with the pod.
    shutil.rmtree(pod / "volumes", ignore_errors=True)


def reconcile():
    wanted = {pod for kind in CONTROLLERS for each in stored(kind) for pod in pods(each)}
    if (CLUSTER / "pods").is_dir():
        for pod in (CLUSTER / "pods").iterdir():
            if pod not in wanted:
                stop(pod)
    for kind in CONTROLLERS:
        for each in stored(kind):
            for pod in pods(each):
                start(each, pod)


def address(pod):
    return f"10.244.0.{(pod / 'number').read_text()}"


def is_ready(each, pod):
    if not running(pod):
        return False
    container = each["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    context = ssl._create_unverified_context()
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
        if probe not in container:
            continue
        get = container[probe]["httpGet"]
        url = f"{get.get('scheme', 'HTTP').lower()}://{address(pod)}:{ports[get['port']]}{get['path']}"
        try:
            urllib.request.urlopen(url, timeout=container[probe].get("timeoutSeconds", 1), context=context).close()
        except (OSError, urllib.error.URLError):
            return False
    return True


def until(what, holds):
    for _ in range(PATIENCE * 5):
        if holds():
            return
        time.sleep(0.2)
    for log in sorted((CLUSTER / "pods").glob("*/log")):
        print(f"-- {log.parent.name}\n" + "\n".join(log.read_text().splitlines()[-15:]), file=sys.stderr)
    fail(f"{what} within {PATIENCE} s")


# A pod's process: a network namespace of its own, a root that is read-only, and volumes where they are mounted.


def fill(volume, pod, group):
    """The folder that a volume is."""
    name = volume["name"]
    if "persistentVolumeClaim" in volume:
        claim = one("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
        folder = CLUSTER / "claims" / claim["metadata"]["name"]
    elif volume.get("claim"):
        folder = CLUSTER / "claims" / f"{name}-{pod.name}"
    else:
        folder = pod / "volumes" / name
    folder.mkdir(parents=True, exist_ok=True)
    os.chown(folder, 0, group)
    folder.chmod(0o2770)
    contents = {}
    if "configMap" in volume:
        contents = {key: value.encode() for key, value in one("ConfigMap", volume["configMap"]["name"])["data"].items()}
    sources = [{"name": volume["secret"]["secretName"]}] if "secret" in volume else []
    sources += [source["secret"] for source in volume.get("projected", {}).get("sources", [])]
    for source in sources:
        held = {file.name: file.read_bytes() for file in (CLUSTER / "secrets" / source["name"]).iterdir()}
        items = source.get("items", [{"key": key, "path": key} for key in held])
        contents |= {item["path"]: held[item["key"]] for item in items}
    for path, content in contents.items():
        file = folder / path
        file.write_bytes(content)
        os.chown(file, 0, group)
        file.chmod(0o644 if "configMap" in volume else 0o440)
    return folder


def environment(container, pod):
    fields = {"metadata.name": pod.name, "spec.nodeName": "node-1"}
    found = {"HOME": "/var/lib/deltaconv", "PATH": "/usr/bin:/bin"}
    for source in container.get("envFrom", []):
        secret = CLUSTER / "secrets" / source["secretRef"]["name"]
        if not secret.is_dir() and not source["secretRef"].get("optional"):
            fail(f"no secret {secret.name}")
        found |= {file.name: file.read_text() for file in (secret.iterdir() if secret.is_dir() else [])}
    for variable in container.get("env", []):
        value = variable.get("value")
        found[variable["name"]] = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]] if value is None else value
    return found


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def supervise(pod):
    each = json.loads((pod / "object").read_text())
    spec = each["spec"]["template"]["spec"]
    container, security = spec["containers"][0], spec["securityContext"]
    templates = each["spec"].get("volumeClaimTemplates", [])
    claims = [{"name": claim["metadata"]["name"], "claim": True} for claim in templates]
    volumes = {volume["name"]: fill(volume, pod, security["fsGroup"]) for volume in spec["volumes"] + claims}
    variables = environment(container, pod)
    arguments = container["args"]
    for name, value in variables.items():
        arguments = [argument.replace(f"$({name})", value) for argument in arguments]

    services = stored("Service")
    hosts = "127.0.0.1 localhost\n"
    for service in services:
        wanted = service["spec"]["selector"].items()
        for kind in CONTROLLERS:
            for other in stored(kind):
                if wanted <= other["spec"]["template"]["metadata"]["labels"].items():
                    hosts += f"{address(pods(other)[0])} {service['metadata']['name']}.deltaconv.svc\n"
    (pod / "hosts").write_text(hosts)

    number, namespace = (pod / "number").read_text(), pod.name
    host_end = f"pod{number}"
    ip("netns", "add", namespace)
    ip("link", "add", host_end, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    ip("link", "set", host_end, "master", "pods", "up")
    ip("-n", namespace, "link", "set", "lo", "up")
    ip("-n", namespace, "address", "add", f"10.244.0.{number}/24", "dev", "eth0")
    ip("-n", namespace, "link", "set", "eth0", "up")

    script = [f"root=/run/roots/{pod.name}", 'mkdir -p "$root"', 'mount -t tmpfs tmpfs "$root"']
    script += ['mkdir "$root/etc"', 'cp "$1" "$root/etc/hosts"', "shift"]
    for system in ["usr", "lib", "lib64", "dev", "proc", "sys"]:
        there = pathlib.Path("/", system)
        if there.is_symlink():
            script.append(f'ln -s {os.readlink(there)} "$root/{system}"')
        elif there.exists():
            script.append(f'mkdir "$root/{system}"; mount --rbind /{system} "$root/{system}"')
    script.append('touch "$root/deltaconv"; mount --bind "$PROGRAM" "$root/deltaconv"')
    for mount in container["volumeMounts"]:
        place = f'"$root{mount["mountPath"]}"'
        script.append(f'mkdir -p {place}; mount --bind "{volumes[mount["name"]]}" {place}')
        if mount.get("readOnly"):
            script.append(f"mount -o remount,bind,ro {place}")
    if container["securityContext"]["readOnlyRootFilesystem"]:
        script.append('mount -o remount,ro "$root"')
    user = f"{security['runAsUser']}:{security['runAsGroup']}"
    variables = [f"{name}={value}" for name, value in variables.items()]
    chroot = f'{shutil.which("chroot")} --userspec={user} --groups={security["fsGroup"]} "$root" /deltaconv'
    script.append(f'exec env -i "${{@:2:$1}}" {chroot} "${{@:$(($1 + 2))}}"')
    inner = ["bash", "-euc", "\n".join(script), "pod", str(pod / "hosts"), str(len(variables)), *variables, *arguments]
    command = ["ip", "netns", "exec", namespace, "unshare", "--mount", *inner]

    asked, process = threading.Event(), None

    def end(*_):
        asked.set()
        if process:
            process.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    while not asked.is_set():
        process = subprocess.Popen(command)
        while process.poll() is None and not asked.is_set():
            time.sleep(0.05)
        if asked.is_set():
            try:
                process.wait(spec.get("terminationGracePeriodSeconds", 30))
            except subprocess.TimeoutExpired:
                (CLUSTER / "killed").open("a").write(f"{pod.name}\n")
                process.kill()
                process.wait()
        elif process.returncode == 0 and each["kind"] == "Job":
            (pod / "complete").touch()
            break
        else:
            print(f"-- ended with {process.returncode}; it is started again", flush=True)
            time.sleep(1)
    ip("netns", "delete", namespace)


# What the page calls.


def apply(flag, source):
    text = pathlib.Path(source).read_text() if flag == "-f" else None
    if flag == "-k":
        text = subprocess.run([os.environ["KUSTOMIZE"], "kustomize", source], check=True, capture_output=True, text=True).stdout
    changed = []
    for each in filter(None, yaml.safe_load_all(text)):
        name = each["metadata"]["name"]
        before = stored(each["kind"], name)
        if each["kind"] in CONTROLLERS and before and before[0]["spec"]["template"] != each["spec"]["template"]:
            changed += pods(before[0])
        store(each)
    for pod in changed:
        stop(pod)
    reconcile()


def create_secret(name, options):
    folder = CLUSTER / "secrets" / name
    if folder.is_dir():
        fail(f"the secret {name} is there already")
    folder.mkdir(parents=True)
    for option in options:
        kind, _, value = option.partition("=")
        key, is_named, path = value.partition("=")
        if kind == "--from-file":
            file = pathlib.Path(path if is_named else value)
            (folder / (key if is_named else file.name)).write_bytes(file.read_bytes())
        elif kind == "--from-literal":
            (folder / key).write_text(path)
        elif kind != "--namespace":
            fail(f"{option} is not known here")
    print(f"secret/{name} created")
    reconcile()


def forward(service, port):
    """Has what comes to this port of this machine go to the first pod of the service."""
    wanted = one("Service", service)["spec"]
    target = next(each for each in wanted["ports"] if str(each["port"]) == port)
    owner = next(each for kind in CONTROLLERS for each in stored(kind)
                 if wanted["selector"].items() <= each["spec"]["template"]["metadata"]["labels"].items())
    ports = {each["name"]: each["containerPort"] for each in owner["spec"]["template"]["spec"]["containers"][0]["ports"]}
    there = (address(pods(owner)[0]), ports[target["targetPort"]])

    def copy(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def serve(client):
        try:
            upstream = socket.create_connection(there, timeout=5)
            upstream.settimeout(None)
        except OSError:
            client.close()
            return
        back = threading.Thread(target=copy, args=(upstream, client), daemon=True)
        back.start()
        copy(client, upstream)
        back.join()
        client.close()
        upstream.close()

    listener = socket.create_server(("127.0.0.1", int(port)))
    print(f"Forwarding from 127.0.0.1:{port}", flush=True)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


def main(words):
    match words:
        case ["_supervise", pod]:
            supervise(pathlib.Path(pod))
        case ["config", "set-context", "--current", *_]:
            pass
        case ["apply", "-f" | "-k" as flag, source]:
            apply(flag, source)
        case ["kustomize", source]:
            os.execv(os.environ["KUSTOMIZE"], ["kubectl", "kustomize", source])
        case ["create", "secret", "generic", name, *options]:
            create_secret(name, options)
        case ["rollout", "status", named]:
            each = controller(named)
            until(f"{named} was not ready", lambda: reconcile() or all(is_ready(each, pod) for pod in pods(each)))
            print(f"{named} is ready")
        case ["rollout", "restart", named]:
            for pod in pods(controller(named)):
                stop(pod)
            reconcile()
        case ["wait", "--for=condition=complete", *_, named]:
            each = controller(named)
            until(f"{named} was not complete", lambda: all((pod / "complete").exists() for pod in pods(each)))
        case ["scale", named, replicas] if replicas.startswith("--replicas="):
            each = controller(named)
            each["spec"]["replicas"] = int(replicas.partition("=")[2])
            store(each)
            reconcile()
        case ["get", "pods", *_]:
            for kind in CONTROLLERS:
                for each in stored(kind):
                    for pod in pods(each):
                        ended = "Completed" if (pod / "complete").exists() else "Pending"
                        print(pod.name, "Running" if running(pod) else ended)
        case ["delete", "namespace", "deltaconv"]:
            for known in ["objects", "secrets"]:
                shutil.rmtree(CLUSTER / known)
            reconcile()
        case ["port-forward", service, port]:
            forward(service.removeprefix("service/"), port)
        case _:
            fail(f"{words} is not known here")


if __name__ == "__main__":
    main(sys.argv[1:])
