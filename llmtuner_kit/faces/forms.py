"""Settings -> form -> settings: the only importer of ipywidgets.

    form = Form("train", globals())   # the notebook's parameters, by their names
    form                       # shows the controls, with the parameters as their values
    settings = form.settings() # what is in the controls now, checked; one error that lists every problem

The form is a view. It never acts, and headless it shows itself and changes nothing. Controls take anything that can be
typed: the settings judge, since bounded controls would correct a value in silence. Every control carries its own
label, so that a screen reader and a test find it by name; the help is visible text.
"""

from __future__ import annotations

import ast
import asyncio
import html
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ipywidgets
import traitlets
from pydantic.fields import FieldInfo

from llmtuner_kit import settings as kit_settings
from llmtuner_kit.errors import KitError, SettingsError
from llmtuner_kit.faces import groups
from llmtuner_kit.run_settings import RunSettings

_LABELS = {
    "user_id": "User", "model_id": "Base model", "lora_r": "LoRA rank", "lora_alpha": "LoRA alpha",
    "lora_dropout": "LoRA dropout", "budget_usd": "Budget in USD", "role_arn": "Role ARN",
    "kms_key_id": "KMS key", "top_p": "Top p", "max_length": "Longest row in tokens",
}  # fmt: skip
RESULTS = {
    "start": "started", "upload": "uploaded", "prepare": "prepared", "train": "job", "monitor": "snapshot",
    "download": "downloaded", "deploy": "endpoint", "invoke": "settings", "cleanup": "cleaned",
}  # fmt: skip
"""What the cell below the form makes for the last cell of the notebook, by step."""
_LABEL_STYLE = {"description_width": "13em"}
# Numbers are short; choices, names, paths and texts need room.
_SHORT, _LONG = ({"width": width, "max_width": "100%", "flex": "0 0 auto"} for width in ("26em", "36em"))
_HINT = "<div style='opacity:.75;font-size:85%;line-height:1.3;white-space:normal'>{}</div>"
# A hint stands to the right of its control, or below it where something stands beside the form.
_RIGHT, _BELOW = {"margin": "6px 0 0 8px", "flex": "1 1 0"}, {"margin": "-2px 0 6px 13.6em", "flex": "1 1 100%"}
# The title of folded fields: as wide as they are, and written from the left.
_TITLE = {"width": "auto", "display": "flex", "justify_content": "flex-start", "align_items": "center"}
_LINES = "white-space:pre-line;line-height:1.4;overflow-wrap:anywhere;margin:.6em 0"
_BUTTON = 56  # characters that a button shows
_WHEN_EMPTY = "; empty: "
_ANOTHER = "another model …"
_INVALID = "<p role='status'>Shown as soon as all settings are valid.</p>"
_LOOKING, _LOOKING_AFTER = "<p role='status'>Looking …</p>", 0.3  # the first look may have to start the local cloud


class Form:
    """The controls of one notebook."""

    def __init__(self, step: str, namespace: Mapping[str, Any] | None = None, **parameters: Any) -> None:
        """The parameters come by name, or are looked up in a notebook's `globals()`.

        Raises SettingsError when notebook and settings have drifted apart: a name that is no setting, or a setting
        that the namespace lacks.
        """
        model = kit_settings.STEPS.get(step)
        if model is None:
            raise SettingsError(f"There is no step {step!r}.", valid=", ".join(kit_settings.STEPS))
        if namespace is not None:
            missing = [name for name in model.model_fields if name not in namespace]
            if missing:
                raise _without(missing, model, namespace)
            parameters = {name: namespace[name] for name in model.model_fields} | parameters
        given = set(parameters) | _injected(namespace or {})
        if unknown := given - set(model.model_fields):
            raise kit_settings.unknown_names(step, sorted(unknown))
        self.step = step
        self._model = model
        self._namespace = namespace
        # What a control cannot hold (a misspelt choice of a list) stays here until the control is used.
        self._given = dict(parameters)
        self._controls = {
            name: _control(name, field, parameters.get(name, field.default))
            for name, field in model.model_fields.items()
        }
        self._shown = {name: control.value for name, control in self._controls.items()}
        self._hints: dict[str, ipywidgets.Widget] = {}
        self._groups: list[tuple[ipywidgets.ToggleButton, Sequence[str]]] = []
        self._verdict = ipywidgets.HTML()
        self._offer: Mapping[str, Any] = {}
        self._taken = ipywidgets.Button(layout={"width": "auto", "max_width": "36em", "display": "none"})
        self._taken.on_click(self._take)
        self._beside = ipywidgets.HTML(layout={"flex": "1 1 24em", "margin": "0 0 0 2em"})
        self._look: Callable[[RunSettings], Any] | None = None
        self._looks, self._turn = ThreadPoolExecutor(1), 0  # one look at a time, and which of them is the newest
        for control in self._controls.values():
            control.observe(self._changed, names="value")
        self._box = self._layout()
        self._judge()
        self._beside.layout.display = "none"

    def values(self) -> dict[str, Any]:
        """What the fields hold now: a control that was used, else the parameter as it was given."""
        return {
            name: control.value if control.value != self._shown[name] else self._given.get(name, control.value)
            for name, control in self._controls.items()
        }

    def settings(self) -> Any:
        """The checked settings, of the run that is shown. Raises one SettingsError with all problems.

        What the next cell made before is forgotten: should it fail this time, the last cell must not show that.
        """
        if isinstance(self._namespace, MutableMapping):
            self._namespace.pop(RESULTS[self.step], None)
        settings = kit_settings.load(self.step, self.values())
        if self._look is None:
            return settings
        self._look_now()  # what the form says is what is taken: an earlier notebook may have run since
        settled = getattr(self._look, "settled", None)
        return settled(settings) if settled else settings

    def beside(self, look: Callable[[Any], Any]) -> Form:
        """Show `look(settings)` beside the form, again after each change: the quote beside the training form.

        `look` returns a card, or raises what the user can put right, which is shown as text. Where it has a method
        `settled`, that says which settings are meant by those with an empty name.
        """
        self._look = look
        self._box.children[0].layout.flex = "0 1 40em"
        for hint in self._hints.values():
            hint.layout = _BELOW
        self._beside.layout.display = ""
        self._beside.value = _LOOKING
        self._look_now()
        return self

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = self._box._repr_mimebundle_(**options)
        data = dict(bundle[0] if isinstance(bundle, tuple) else bundle)
        # What a saved notebook and a headless run show in place of the controls.
        data["text/plain"] = self._in_words()
        return data

    def _in_words(self) -> str:
        """What was set, and how much was not: a log has no use for two dozen defaults."""
        fields, values = self._model.model_fields, self.values()
        told = [f"{name} = {value!r}" for name, value in values.items() if value != fields[name].default]
        left = len(values) - len(told)
        return "\n".join([*told, *([f"({left} parameters at their defaults)"] if left else [])])

    def _layout(self) -> ipywidgets.Widget:
        folded = groups.of(self.step)
        away = {name for names in folded.values() for name in names}
        top = [name for name in self._controls if name not in away]
        top.sort(key=lambda name: name != "run_name")
        column = ipywidgets.VBox(
            [
                *map(self._row, top),
                *(self._group(title, names) for title, names in folded.items()),
                self._verdict,
                self._taken,
            ]
        )
        column.layout.flex = "1 1 0"
        return ipywidgets.HBox([column, self._beside], layout={"flex_flow": "row wrap"})

    def _group(self, title: str, names: Sequence[str]) -> ipywidgets.Widget:
        """Fields that open with their title; open already where one of them was given another value.

        A button, as the keyboard does not reach the titles of an Accordion.
        """
        rows = ipywidgets.VBox([self._row(name) for name in names])
        button = ipywidgets.ToggleButton(description=title, tooltip=title, layout=_TITLE, style={"font_weight": "bold"})

        def turn(_: object) -> None:
            button.icon = "caret-down" if button.value else "caret-right"
            rows.layout.display = "" if button.value else "none"

        button.observe(turn, names="value")
        fields = self._model.model_fields
        button.value = any(self._given.get(name, fields[name].default) != fields[name].default for name in names)
        turn(button)
        self._groups.append((button, names))
        return ipywidgets.VBox([button, rows])

    def _row(self, name: str) -> ipywidgets.Widget:
        told = (self._model.model_fields[name].description or "").partition(_WHEN_EMPTY)[0]
        self._hints[name] = ipywidgets.HTML(_HINT.format(html.escape(told)), layout=_RIGHT)
        return ipywidgets.HBox([self._controls[name], self._hints[name]], layout={"flex_flow": "row wrap"})

    def _changed(self, _: Mapping[str, Any]) -> None:
        """A control was used. In a notebook the look is not waited for.

        While the kernel is busy the page keeps back what is typed, and the next cell would run without it.
        """
        settings = self._judge()
        self._turn += 1
        if self._look is None:
            return
        if settings is None:
            self._show(_INVALID, "", {})
            return
        try:
            self._looking = asyncio.get_running_loop().create_task(self._look_soon(settings, self._turn))
        except RuntimeError:  # no notebook
            self._look_now()

    def _take(self, _: ipywidgets.Button) -> None:
        """What was offered is put into its controls, as if it had been typed."""
        for name, value in dict(self._offer).items():
            self._controls[name].value = value

    def _look_now(self) -> None:
        self._turn += 1
        settings = self._judge()
        if settings is None:
            self._show(_INVALID, "", {})
        else:
            self._show(*self._looks.submit(self._seen, settings, self._turn).result())

    async def _look_soon(self, settings: RunSettings, turn: int) -> None:
        seen = asyncio.get_running_loop().run_in_executor(self._looks, self._seen, settings, turn)
        await asyncio.wait([seen], timeout=_LOOKING_AFTER)
        if not seen.done() and turn == self._turn:
            self._beside.value = _LOOKING
        await asyncio.wait([seen])
        if turn != self._turn:
            return
        if error := seen.exception():
            self._beside.value = f"<p role='alert'>{html.escape(repr(error))}</p>"
        self._show(*seen.result())

    def _judge(self) -> RunSettings | None:
        """Say whether the settings hold; the settings if they do."""
        try:
            settings = kit_settings.load(self.step, self.values())
        except SettingsError as error:
            found = [line.lstrip("- ") for line in error.problem.split("\n")[1:]]
            lines = "".join(f"<li>{_with_label(line)}</li>" for line in found)
            self._verdict.value = (
                f"<div role='alert'><b>Needs a change:</b><ul style='line-height:1.4;margin:.3em 0'>{lines}</ul></div>"
            )
            wrong = {line.partition(":")[0] for line in found}
            for button, names in self._groups:
                if wrong & set(names):
                    button.value = True  # what is wrong is in sight
            return None
        self._verdict.value = "<p role='status'>All settings are valid. Run the next cell.</p>"
        return settings

    def _seen(self, settings: RunSettings, turn: int) -> tuple[str, str, Mapping[str, Any]]:
        """What stands beside the form, why the next cell would refuse, and what would mend it.

        Nothing when the form has changed since.
        """
        if self._look is None or turn != self._turn:
            return "", "", {}
        try:
            seen = self._look(settings)
        except KitError as error:
            said = f"<div role='status' style='{_LINES}'>{html.escape(str(error))}</div>"
            return said, "See what is said beside the form.", {}
        return seen._repr_html_(), getattr(seen, "blocked", ""), getattr(seen, "offer", {})

    def _show(self, beside: str, blocked: str, offer: Mapping[str, Any]) -> None:
        self._beside.value = beside
        self._offer = offer
        whole = "Set " + ", ".join(f"{label(name)} to {value}" for name, value in offer.items())
        short = f"Set {' and '.join(map(label, offer))} as proposed"
        self._taken.description, self._taken.tooltip = (whole if len(whole) <= _BUTTON else short), whole
        self._taken.layout.display = "" if offer else "none"
        if blocked:
            self._verdict.value = (
                f"<div role='status' style='{_LINES}'><b>Not ready yet</b>\n{html.escape(blocked)}</div>"
            )


def text(markup: str) -> Any:
    """HTML that can be changed later by its `value`."""
    return ipywidgets.HTML(markup)


def choice(name: str, options: Sequence[str], chosen: Callable[[str], None]) -> Any:
    """Buttons of which one can be pressed; none is at first. `chosen` is told each choice."""
    buttons = ipywidgets.ToggleButtons(options=options, value=None, description=name)
    buttons.observe(lambda change: chosen(str(change["new"])), names="value")
    return buttons


def stacked(parts: Sequence[Any], still: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Controls one below the other as a display bundle; `still` stands for them where nothing can be pressed."""
    bundle = ipywidgets.VBox(list(parts))._repr_mimebundle_(**options)
    data = dict(bundle[0] if isinstance(bundle, tuple) else bundle)
    return data | {"text/plain": repr(still), "text/html": still._repr_html_()}


def _injected(namespace: Mapping[str, Any]) -> set[str]:
    """The names in the cell that papermill puts in behind the parameters; papermill takes any name, we do not."""
    cells = [str(source) for source in namespace.get("In", ()) if str(source).startswith("# Parameters\n")]
    return {
        target.id
        for source in cells
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }


def _with_label(problem: str) -> str:
    """`lora_r: ...` -> `LoRA rank (lora_r): ...`, as HTML."""
    name, colon, text = problem.partition(":")
    return f"<b>{html.escape(label(name))}</b> ({name}):{html.escape(text)}" if colon else html.escape(problem)


def label(name: str) -> str:
    """The visible name of a field: `learning_rate` -> `Learning rate`."""
    return _LABELS.get(name) or name.replace("_", " ").capitalize()


class OpenChoice(ipywidgets.VBox):
    """A list to choose from, whose last entry opens a line for what is not in it. `value` is the text of either."""

    value = traitlets.Unicode()

    def __init__(
        self, options: Sequence[tuple[str, str]], empty: Sequence[tuple[str, str]], value: str, **looks: Any
    ) -> None:
        self._listed = {item for _, item in (*empty, *options)}
        choices = [*empty, *options, (_ANOTHER, _ANOTHER)]
        inside = looks | {"layout": {"width": "auto"}}
        self._list = ipywidgets.Dropdown(options=choices, **inside)
        below = inside | {"description": "Its name or place", "placeholder": "ORG/MODEL, s3://… or ./FOLDER"}
        self._line = ipywidgets.Text(continuous_update=False, **below)
        super().__init__([self._list, self._line], layout=looks["layout"])
        self.observe(self._follow, names="value")
        for control in (self._list, self._line):
            control.observe(self._used, names="value")
        self._line.layout.display = "none"
        self.value = value
        self._follow({"new": value})

    def _follow(self, change: Mapping[str, Any]) -> None:
        """The controls show the value, where it was not they that have set it."""
        if change["new"] == self._held():
            return
        if change["new"] in self._listed:
            self._list.value = change["new"]
        else:
            self._line.value = change["new"]
            self._list.value = _ANOTHER

    def _held(self) -> str:
        return str(self._line.value if self._list.value == _ANOTHER else self._list.value)

    def _used(self, _: Mapping[str, Any]) -> None:
        self._line.layout.display = "" if self._list.value == _ANOTHER else "none"
        self.value = self._held()


def _control(name: str, field: FieldInfo, value: Any) -> Any:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    short: dict[str, Any] = {"description": label(name), "style": _LABEL_STYLE, "layout": _SHORT}
    long = short | {"layout": _LONG}
    empty = (field.description or "").partition(_WHEN_EMPTY)[2]
    options = [(str(item), item) for item in kit_settings.values_of(field)]
    if extra.get("choices") == "models":
        return OpenChoice(options, [] if field.default else [(f"({empty})", "")], str(value), **long)
    if options:
        if extra.get("choices") and field.default == "":
            options = [(f"({empty})", ""), *options]
        held = [item for _, item in options]
        return ipywidgets.Dropdown(options=options, value=value if value in held else held[0], **long)
    if field.annotation is bool:
        return ipywidgets.Checkbox(value=value is True, **(short | {"indent": True}))
    if field.annotation is int:
        return ipywidgets.IntText(value=value if type(value) is int else 0, **short)
    if field.annotation is float:
        return ipywidgets.FloatText(value=value if type(value) in (int, float) else 0.0, **short)
    if extra.get("multiline"):
        return ipywidgets.Textarea(value=str(value), continuous_update=False, rows=4, placeholder=empty, **long)
    return ipywidgets.Text(value=str(value), continuous_update=False, placeholder=empty, **long)


def _without(missing: list[str], model: type[RunSettings], namespace: Mapping[str, Any]) -> SettingsError:
    """The cell with the parameters has not run, or it lacks some: a copy of the notebook may be older than the kit."""
    if not any(name in namespace for name in model.model_fields):
        return SettingsError("The parameters are not set.", fix="run the cells above, from the first one on")
    lines = "; ".join(f"{name} = {model.model_fields[name].default!r}" for name in missing)
    return SettingsError(
        f"The notebook has no parameter {', '.join(missing)}.",
        fix=f"take the notebook anew from the kit's folder, or add to its first cell: {lines}",
    )
