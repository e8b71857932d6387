"""JSON Schemas out of Kubernetes' CRDs, and whether one schema asks for no less than another."""

from collections.abc import Mapping
from typing import Any

# What says nothing about whether a value is right, or cannot be said in JSON Schema.
_DROPPED = ("description", "default", "format")


def of_crd(crd: Mapping[str, Any], version: str) -> dict[str, Any]:
    """The JSON Schema of one version of a CRD, as strict as a server's validation of fields."""
    [found] = [one for one in crd["spec"]["versions"] if one["name"] == version]
    schema = _strict(found["schema"]["openAPIV3Schema"])
    # The server knows these of every object.
    schema["properties"]["metadata"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string"},
            "namespace": {"type": "string"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    }
    schema["properties"]["kind"] = {"const": crd["spec"]["names"]["kind"], "type": "string"}
    group = crd["spec"]["group"]
    schema["properties"]["apiVersion"] = {"const": f"{group}/{version}", "type": "string"}
    return schema


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {}
    for key, value in schema.items():
        if key == "properties":  # whose keys are names, of which one may be "description"
            made[key] = {name: _strict(one) for name, one in value.items()}
        elif key not in _DROPPED and not key.startswith("x-"):
            made[key] = _strict(value)
    if "properties" in made:
        made.setdefault("additionalProperties", False)
    return made


def narrower(
    slim: Mapping[str, Any], whole: Mapping[str, Any], defs: Mapping[str, Any], at: str = ""
) -> list[str]:
    """Paths at which `slim` accepts something that `whole` refuses; empty for none.

    Of schemas made of objects, arrays, types, enums and required fields, as those of CRDs are;
    `defs` are what `slim` refers to.
    """
    if "$ref" in slim:
        return narrower(defs[slim["$ref"].rpartition("/")[2]], whole, defs, at)
    faults = []
    if not _types(slim) <= _types(whole):
        faults.append(f"{at}: is {slim['type']}, not {whole.get('type')}")
    if (allowed := _values(whole)) is not None:
        own = _values(slim)
        if own is None or not own <= allowed:
            faults.append(f"{at}: may be none but {sorted(allowed)}")
    missing = {*whole.get("required", ())} - {*slim.get("required", ())}
    faults += [f"{at}.{name}: is required" for name in sorted(missing)]
    known = whole.get("properties")
    for name, one in slim.get("properties", {}).items():
        if known is None or name not in known:
            faults.append(f"{at}.{name}: is no field")
        else:
            faults += narrower(one, known[name], defs, f"{at}.{name}")
    if "properties" in slim and slim.get("additionalProperties") is not False:
        faults.append(f"{at}: lets unknown fields pass")
    for key in ("items", "additionalProperties"):
        if isinstance(slim.get(key), Mapping):
            if isinstance(whole.get(key), Mapping):
                faults += narrower(slim[key], whole[key], defs, f"{at}.{key}")
            else:
                faults.append(f"{at}: has no {key}")
    return faults


def _types(schema: Mapping[str, Any]) -> set[str]:
    named = schema["type"]
    return {named} if isinstance(named, str) else {*named}


def _values(schema: Mapping[str, Any]) -> set[Any] | None:
    if "const" in schema:
        return {schema["const"]}
    return {*schema["enum"]} if "enum" in schema else None
