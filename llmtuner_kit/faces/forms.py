"""Settings -> form -> settings: the only importer of ipywidgets.

    form = Form("train", globals())   # the notebook's parameters, by their names
    form                       # shows the controls, with the parameters as their values
    settings = form.settings() # what is in the controls now, checked; one error that lists every problem

The form is a view. It never acts, and headless it shows itself and changes nothing. Controls take anything that can be
typed: the settings judge, since bounded controls would correct a value in silence. Every control carries its own
label, so that a screen reader and a test find it by name; the help is visible text.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import ipywidgets
from pydantic.fields import FieldInfo

from llmtuner_kit import settings as kit_settings
from llmtuner_kit.errors import KitError, SettingsError
from llmtuner_kit.faces import groups
from llmtuner_kit.settings import RunSettings

_LABELS = {
    "user_id": "User", "model_id": "Base model", "lora_r": "LoRA rank", "lora_alpha": "LoRA alpha",
    "lora_dropout": "LoRA dropout", "budget_usd": "Budget in USD", "volume_gb": "Disk in GB", "role_arn": "Role ARN",
    "kms_key_id": "KMS key", "top_p": "Top p", "max_length": "Longest row in tokens",
}  # fmt: skip
_LABEL_STYLE = {"description_width": "13em"}
# Numbers and choices are short; names, paths and texts need room.
_SHORT, _LONG = {"width": "26em", "flex": "0 0 auto"}, {"width": "36em", "flex": "0 0 auto"}
_HINT = "<div style='opacity:.75;font-size:85%;line-height:1.3;padding:.45em 0 0 .6em'>{}</div>"


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
                raise SettingsError(
                    f"The notebook has no parameter {', '.join(missing)}.",
                    fix="run the cell with the parameters first, or fetch the notebook again",
                )
            parameters = {name: namespace[name] for name in model.model_fields} | parameters
        unknown = sorted(set(parameters) - set(model.model_fields))
        if unknown:
            raise SettingsError(f"Not settings of {step}: {', '.join(unknown)}.", valid=", ".join(model.model_fields))
        self.step = step
        self._model = model
        # What a control cannot hold (a misspelt choice of a list) stays here until the control is used.
        self._given = dict(parameters)
        self._controls = {
            name: _control(name, field, parameters.get(name, field.default))
            for name, field in model.model_fields.items()
        }
        self._shown = {name: control.value for name, control in self._controls.items()}
        self._verdict = ipywidgets.HTML()
        self._beside = ipywidgets.HTML(layout={"flex": "1 1 0", "margin": "0 0 0 2em"})
        self._look: Callable[[RunSettings], Any] | None = None
        for control in self._controls.values():
            control.observe(self._changed, names="value")
        self._box = self._layout()
        self._judge()
        self._refresh()

    def values(self) -> dict[str, Any]:
        """What the fields hold now: a control that was used, else the parameter as it was given."""
        return {
            name: control.value if control.value != self._shown[name] else self._given.get(name, control.value)
            for name, control in self._controls.items()
        }

    def settings(self) -> Any:
        """The checked settings. Raises one SettingsError with all problems."""
        return kit_settings.load(self.step, self.values())

    def beside(self, look: Callable[[Any], Any]) -> Form:
        """Show `look(settings)` beside the form, again after each change: the quote beside the training form.

        `look` returns something with `_repr_html_`; what the user can put right is shown as text.
        """
        self._look = look
        self._refresh()
        return self

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = self._box._repr_mimebundle_(**options)
        data = dict(bundle[0] if isinstance(bundle, tuple) else bundle)
        # What a saved notebook and a headless run show in place of the controls.
        data["text/plain"] = "\n".join(f"{name} = {value!r}" for name, value in self.values().items())
        return data

    def _layout(self) -> ipywidgets.Widget:
        folded = groups.of(self.step)
        away = {name for names in folded.values() for name in names}
        top = [name for name in self._controls if name not in away]
        top.sort(key=lambda name: name != "run_name")
        column = ipywidgets.VBox(
            [*map(self._row, top), *(self._group(title, names) for title, names in folded.items()), self._verdict]
        )
        column.layout.flex = "1 1 0"
        return ipywidgets.HBox([column, self._beside])

    def _group(self, title: str, names: Sequence[str]) -> ipywidgets.Widget:
        """Fields that open with a click on their title; open already where one of them was given another value."""
        group = ipywidgets.Accordion(children=[ipywidgets.VBox([self._row(name) for name in names])])
        group.set_title(0, title)
        fields = self._model.model_fields
        if any(self._given.get(name, fields[name].default) != fields[name].default for name in names):
            group.selected_index = 0
        return group

    def _row(self, name: str) -> ipywidgets.Widget:
        hint = ipywidgets.HTML(_HINT.format(html.escape(self._model.model_fields[name].description or "")))
        hint.layout.flex = "1 1 0"
        return ipywidgets.HBox([self._controls[name], hint])

    def _changed(self, _: Mapping[str, Any]) -> None:
        self._judge()
        self._refresh()

    def _judge(self) -> None:
        try:
            self.settings()
            self._verdict.value = "<p role='status'>All settings are valid. Run the next cell.</p>"
        except SettingsError as error:
            lines = "".join(f"<li>{html.escape(line.lstrip('- '))}</li>" for line in error.problem.split("\n")[1:])
            self._verdict.value = f"<div role='alert'><b>Needs a change:</b><ul>{lines}</ul></div>"

    def _refresh(self) -> None:
        if self._look is None:
            self._beside.layout.display = "none"
            return
        self._beside.layout.display = ""
        try:
            settings = self.settings()
        except SettingsError:
            self._beside.value = "<p role='status'>Shown as soon as all settings are valid.</p>"
            return
        try:
            self._beside.value = self._look(settings)._repr_html_()
        except KitError as error:
            self._beside.value = f"<pre role='status'>{html.escape(str(error))}</pre>"


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


def label(name: str) -> str:
    """The visible name of a field: `learning_rate` -> `Learning rate`."""
    return _LABELS.get(name) or name.replace("_", " ").capitalize()


def _control(name: str, field: FieldInfo, value: Any) -> Any:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    short: dict[str, Any] = {"description": label(name), "style": _LABEL_STYLE, "layout": _SHORT}
    long = short | {"layout": _LONG}
    options = _options(field, extra)
    if options:
        if extra.get("choices") and field.default == "":
            options = ["", *options]
        return ipywidgets.Dropdown(options=options, value=value if value in options else options[0], **short)
    if field.annotation is bool:
        return ipywidgets.Checkbox(value=value is True, **(long | {"indent": True}))
    if field.annotation is int:
        return ipywidgets.IntText(value=value if type(value) is int else 0, **short)
    if field.annotation is float:
        return ipywidgets.FloatText(value=value if type(value) in (int, float) else 0.0, **short)
    if extra.get("multiline"):
        return ipywidgets.Textarea(value=str(value), rows=4, **long)
    return ipywidgets.Text(value=str(value), continuous_update=False, **long)


def _options(field: FieldInfo, extra: Mapping[str, Any]) -> list[Any]:
    if get_origin(field.annotation) is Literal:
        return list(get_args(field.annotation))
    return list(kit_settings.choices(str(extra["choices"]))) if extra.get("choices") else []
