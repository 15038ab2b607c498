"""Where copies of inference components go: instances that have room for them."""

from __future__ import annotations

from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.instances import Resources, resources_of
from llmtuner_local.emulator.operations import endpoints, fleets

KIND = endpoints.COMPONENT_KIND


def needs(specification: dict[str, Any]) -> Resources:
    """What one copy needs, from ComputeResourceRequirements."""
    asked = specification.get("ComputeResourceRequirements", {})
    return Resources(
        asked.get("NumberOfCpuCoresRequired", 0.0),
        asked.get("MinMemoryRequiredInMb", 0.0),
        asked.get("NumberOfAcceleratorDevicesRequired", 0.0),
    )


def room(context: Context, endpoint: dict[str, Any], variant: fleets.Variant) -> dict[str, Resources]:
    """What is left on every instance of a variant, by the instance's id."""
    whole = resources_of(variant["_instance_type"])
    left = {item["id"]: whole for item in fleets.of_variant(endpoint["_replicas"], variant["VariantName"])}
    for component in context.store.all(KIND):
        if component["EndpointName"] == endpoint["EndpointName"]:
            for copy in component["_copies"]:
                if copy["instance"] in left:
                    left[copy["instance"]] -= needs(component["_specification"])
    return left


def choose(left: dict[str, Resources], wanted: Resources, held: list[str], strategy: str) -> str | None:
    """The instance for one more copy, or None when none has room.

    Args:
        held: the instances of the component's other copies.
        strategy: SPREAD (where the fewest copies are) or BINPACK (where the least is left).
    """
    fitting = [name for name, resources in left.items() if resources.holds(wanted)]
    if not fitting:
        return None
    if strategy == "BINPACK":
        return min(fitting, key=lambda name: (left[name].accelerators, left[name].memory_mb))
    return min(fitting, key=lambda name: (held.count(name), -left[name].memory_mb))


def grow(context: Context, endpoint: dict[str, Any], variant: fleets.Variant) -> dict[str, Any] | None:
    """One instance more, where ManagedInstanceScaling allows it; the changed endpoint, or None."""
    scaling = variant.get("ManagedInstanceScaling", {})
    count = len(fleets.of_variant(endpoint["_replicas"], variant["VariantName"]))
    if scaling.get("Status") != "ENABLED" or count >= scaling.get("MaxInstanceCount", count):
        return None
    return _with_count(context, endpoint, variant, count + 1, [])


def shrink(context: Context, endpoint: dict[str, Any]) -> None:
    """Give back instances without copies, where ManagedInstanceScaling allows it."""
    for variant in endpoint["_variants"]:
        scaling = variant.get("ManagedInstanceScaling", {})
        if scaling.get("Status") != "ENABLED" or endpoint["EndpointStatus"] != "InService":
            continue
        mine = fleets.of_variant(endpoint["_replicas"], variant["VariantName"])
        components = [item for item in context.store.all(KIND) if item["EndpointName"] == endpoint["EndpointName"]]
        used = {copy["instance"] for item in components for copy in item["_copies"]}
        spare = [item for item in mine if item["id"] not in used][
            : max(0, len(mine) - scaling.get("MinInstanceCount", 1))
        ]
        if spare:
            endpoint = _with_count(context, endpoint, variant, len(mine) - len(spare), spare)


def _with_count(
    context: Context, endpoint: dict[str, Any], variant: fleets.Variant, count: int, spare: list[dict[str, Any]]
) -> dict[str, Any]:
    """An endpoint with another number of bare instances of a variant, stored."""
    resized = dict(variant, DesiredInstanceCount=count)
    kept = [item for item in endpoint["_replicas"] if item not in spare]
    missing = count - len(fleets.of_variant(kept, variant["VariantName"]))
    changed = dict(endpoint)
    changed["_variants"] = [resized if item is variant else item for item in endpoint["_variants"]]
    changed["_replicas"] = kept + fleets.start(
        context, endpoint["EndpointName"], [dict(variant, DesiredInstanceCount=missing)]
    )
    return context.store.put(endpoints.KIND, endpoint["EndpointName"], changed)
