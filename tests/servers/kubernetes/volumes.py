"""What a pod's containers get from the API: environment variables and volumes, as folders of this machine."""

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.servers.kubernetes.containers import Mount

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api, V1Container, V1Pod

_VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


class PodInputs:
    """Reads what a pod refers to. Every method raises `ApiException` where an object is not there (yet)."""

    def __init__(self, api: "CoreV1Api", pod: "V1Pod", address: str, folder: Path):
        self._api = api
        self._pod = pod
        self._address = address
        self._folder = folder
        self._namespace = pod.metadata.namespace

    def environment(self, container: "V1Container", services: Mapping[str, str]) -> dict[str, str]:
        """Return a container's variables; `services`: those of the services of its namespace."""
        found = dict(services)
        for source in container.env_from or []:
            reference = source.config_map_ref or source.secret_ref
            values = self._config_map(reference) if source.config_map_ref else self._secret(reference)
            found.update({f"{source.prefix or ''}{key}": value.decode() for key, value in values.items()})
        for variable in container.env or []:
            value = self._value(variable.value_from) if variable.value_from else variable.value or ""
            if value is not None:
                found[variable.name] = expand(value, found)
        return found

    def mounts(self, container: "V1Container") -> list[Mount]:
        """Return what a container mounts; folders and files are made below the pod's folder."""
        volumes = {volume.name: volume for volume in self._pod.spec.volumes or []}
        found = []
        for mount in container.volume_mounts or []:
            source = self._volume(volumes[mount.name])
            if mount.sub_path:
                source = source / mount.sub_path
                if not source.exists():
                    source.mkdir(parents=True)
            found.append(Mount(source, mount.mount_path.rstrip("/"), bool(mount.read_only)))
        # An outer folder before what lies inside of it.
        return sorted(found, key=lambda each: each.target)

    def _value(self, source: Any) -> str | None:
        if source.field_ref:
            return self._field(source.field_ref.field_path)
        if source.config_map_key_ref:
            return self._key(self._config_map, source.config_map_key_ref)
        if source.secret_key_ref:
            return self._key(self._secret, source.secret_key_ref)
        raise NotImplementedError(f"a variable from {source}")

    @staticmethod
    def _key(read: Callable[[Any], Mapping[str, bytes]], reference: Any) -> str | None:
        value = read(reference).get(reference.key)
        if value is None and not reference.optional:
            raise KeyError(f"{reference.name} has no key {reference.key}")
        return None if value is None else value.decode()

    def _field(self, path: str) -> str:
        metadata, spec = self._pod.metadata, self._pod.spec
        if "['" in path:
            part, key = path.removesuffix("']").split("['")
            kept = metadata.labels if part == "metadata.labels" else metadata.annotations
            return str((kept or {}).get(key, ""))
        fields: dict[str, str] = {
            "metadata.name": metadata.name,
            "metadata.namespace": metadata.namespace,
            "metadata.uid": metadata.uid,
            "spec.nodeName": spec.node_name,
            "spec.serviceAccountName": spec.service_account_name,
            "status.podIP": self._address,
        }
        return fields[path]

    def _config_map(self, reference: Any) -> dict[str, bytes]:
        found = self._read(self._api.read_namespaced_config_map, reference)
        if found is None:
            return {}
        text = {key: value.encode() for key, value in (found.data or {}).items()}
        return text | {key: b64decode(value) for key, value in (found.binary_data or {}).items()}

    def _secret(self, reference: Any) -> dict[str, bytes]:
        found = self._read(self._api.read_namespaced_secret, reference)
        return {} if found is None else {key: b64decode(value) for key, value in (found.data or {}).items()}

    def _read(self, read: Callable[[str, str], Any], reference: Any) -> Any:
        from kubernetes.client import ApiException

        try:
            return read(getattr(reference, "secret_name", None) or reference.name, self._namespace)
        except ApiException as error:
            if error.status == 404 and reference.optional:
                return None
            raise

    def _volume(self, volume: Any) -> Path:
        if volume.host_path:
            return Path(volume.host_path.path)
        if volume.persistent_volume_claim:
            return self._claimed(volume.persistent_volume_claim.claim_name)
        folder: Path = self._folder / "volumes" / volume.name
        folder.mkdir(parents=True, exist_ok=True)
        if not volume.empty_dir:
            for path, content in self._files(volume).items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
        return folder

    def _claimed(self, name: str) -> Path:
        claim = self._api.read_namespaced_persistent_volume_claim(name, self._namespace)
        volume = self._api.read_persistent_volume(claim.spec.volume_name)
        return Path(str(volume.spec.host_path.path))

    def _files(self, source: Any) -> dict[str, bytes]:
        """Return path -> content of a volume or of one source of a projected one."""
        if getattr(source, "projected", None):
            return {path: content for each in source.projected.sources for path, content in self._files(each).items()}
        if getattr(source, "service_account_token", None):
            return {source.service_account_token.path: self._token()}
        if source.downward_api:
            return {each.path: self._field(each.field_ref.field_path).encode() for each in source.downward_api.items}
        read, reference = (self._config_map, source.config_map) if source.config_map else (self._secret, source.secret)
        content = read(reference)
        if reference.items:
            return {each.path: content[each.key] for each in reference.items}
        return content

    def _token(self) -> bytes:
        from kubernetes.client import AuthenticationV1TokenRequest, V1TokenRequestSpec

        account = self._pod.spec.service_account_name
        request = AuthenticationV1TokenRequest(spec=V1TokenRequestSpec(audiences=[], expiration_seconds=3600))
        done = self._api.create_namespaced_service_account_token(account, self._namespace, request)
        return str(done.status.token).encode()


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace `$(NAME)` as Kubernetes does: what is not known stays."""
    return _VARIABLE.sub(lambda match: values.get(match[1], match[0]), text)


def in_bytes(quantity: str) -> int:
    """Return the bytes of a quantity such as 512Mi."""
    units = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 10**3, "M": 10**6, "G": 10**9}
    unit = next((unit for unit in units if quantity.endswith(unit)), "")
    return int(float(quantity.removesuffix(unit)) * units.get(unit, 1))
