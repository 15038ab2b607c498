"""Which replica gets a request: by weight between variants, in turn or by load within one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmtuner_local.emulator.context import Context
from llmtuner_local.emulator.endpoint_metrics import Meter
from llmtuner_local.emulator.operations.endpoints import is_for_components

Document = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """One healthy replica: the ports of its containers, in the order of their definition."""

    replica: str
    ports: dict[str, int]


@dataclass
class Route:
    """A variant (of one fleet) or a component with its healthy replicas."""

    name: str
    weight: float
    places: list[Place]
    meter: Meter
    document: Document  # the variant's or component's
    green: bool = False
    lead: float = 0.0
    turn: int = 0

    def next_place(self, in_flight: Mapping[str, int]) -> Place:
        """In turn, or the one with the fewest requests under way where the variant says so.

        Args:
            in_flight: requests under way by replica.
        """
        self.turn = (self.turn + 1) % len(self.places)
        strategy = self.document.get("RoutingConfig", {}).get("RoutingStrategy")
        if strategy == "LEAST_OUTSTANDING_REQUESTS":
            return min(self.places[self.turn :] + self.places[: self.turn], key=lambda item: in_flight[item.replica])
        return self.places[self.turn]


@dataclass
class Table:
    """The routes of one endpoint as it was at one moment."""

    document: Document
    routes: list[Route] = field(default_factory=list)
    shadows: list[Route] = field(default_factory=list)
    for_components: bool = False


class Router:
    """Keeps a table for every endpoint, made anew when its document has changed."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tables: dict[str, Table] = {}
        self._components: dict[str, Route] = {}

    def table(self, document: Document) -> Table:
        """The routes of an endpoint."""
        name = document["EndpointName"]
        known = self._tables.get(name)
        if known is None or known.document is not document:
            known = self._tables[name] = self._make(document)
        return known

    def _make(self, document: Document) -> Table:
        table = Table(document, for_components=is_for_components(document))
        green = document.get("_deployment") or {"share": 0.0}
        blue_share = 1.0 - green["share"]
        if blue_share:
            table.routes += self._routes(document, document["_variants"], document["_replicas"], blue_share)
        if green["share"]:
            fleet = self._routes(document, green["variants"], green["replicas"], green["share"])
            table.routes += [_green(route) for route in fleet]
        table.shadows = self._routes(document, document["_shadows"], document["_replicas"], 1.0)
        for route in table.routes:
            same = [item for item in table.routes if item.name == route.name]
            route.meter.serving = sum(len(item.places) for item in same)
        return table

    def _routes(self, document: Document, variants: list[Document], found: list[Document], share: float) -> list[Route]:
        total = sum(item["DesiredWeight"] for item in variants) or 1.0
        routes = []
        for variant in variants:
            mine = [item for item in found if item["variant"] == variant["VariantName"]]
            meter = self._context.metrics.variant(document["EndpointName"], variant["VariantName"])
            weight = share * variant["DesiredWeight"] / total
            routes.append(Route(variant["VariantName"], weight, places_of(mine), meter, variant))
        return [route for route in routes if route.places]

    def component(self, document: Document) -> Route:
        """The route of an inference component: its healthy copies, perhaps none."""
        name = document["InferenceComponentName"]
        known = self._components.get(name)
        if known is None or known.document is not document:
            meter = self._context.metrics.component(name)
            known = Route(name, 1.0, places_of(document["_copies"]), meter, document)
            meter.serving = len(known.places)
            self._components[name] = known
        return known

    def ports(self) -> set[int]:
        """The ports of every healthy container."""
        tables = self._tables.values()
        routes = [route for table in tables for route in (*table.routes, *table.shadows)]
        routes += self._components.values()
        return {port for route in routes for place in route.places for port in place.ports.values()}

    def drop(self, living: set[str], components: set[str]) -> None:
        """Forget the tables of endpoints and components that are gone."""
        for name in self._tables.keys() - living:
            del self._tables[name]
        for name in self._components.keys() - components:
            del self._components[name]


def _green(route: Route) -> Route:
    route.green = True
    return route


def places_of(found: list[Document]) -> list[Place]:
    """The healthy ones of some replicas."""
    return [Place(item["id"], item["ports"]) for item in found if item["state"] == "InService" and "ports" in item]


def choose(routes: list[Route], wanted: str | None = None) -> Route | None:
    """The route of the next request: the one that is furthest behind its share, exact over any window.

    Args:
        wanted: only this variant, whatever its weight.
    """
    if len(routes) == 1:
        only = routes[0]
        return only if (only.name == wanted if wanted else only.weight > 0) else None
    found = [item for item in routes if (item.name == wanted if wanted else item.weight > 0)]
    if not found:
        return None
    total = 0.0
    for route in found:
        route.lead += route.weight
        total += route.weight
    best = max(found, key=lambda item: item.lead)
    best.lead -= total
    return best
