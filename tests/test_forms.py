"""Forms: fields become labelled controls, controls become checked settings, and nothing acts."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

import ipywidgets
import pytest

from llmtuner_kit import settings as kit_settings
from llmtuner_kit.errors import NotFoundError, SettingsError
from llmtuner_kit.faces import groups
from llmtuner_kit.faces.cards import Card
from llmtuner_kit.faces.forms import Form, label


def controls(form: Form) -> dict[str, ipywidgets.Widget]:
    found: dict[str, ipywidgets.Widget] = {}

    def visit(widget: ipywidgets.Widget) -> None:
        if getattr(widget, "description", "") and not isinstance(widget, ipywidgets.ToggleButton):
            found[widget.description] = widget
        for child in getattr(widget, "children", ()):
            visit(child)

    visit(form._box)
    return found


@pytest.mark.parametrize("step", kit_settings.STEPS)
def test_every_field_has_a_control_with_its_own_label(step: str) -> None:
    fields = kit_settings.STEPS[step].model_fields
    another = {"Its name or place"} if "model_id" in fields else set()
    assert {label(name) for name in fields} | another == set(controls(Form(step)))


def test_a_model_that_is_not_in_the_list_is_written_in_a_line_of_its_own() -> None:
    form = Form("train")
    choice, line = controls(form)["Base model"], controls(form)["Its name or place"]
    assert line.layout.display == "none"
    choice.value = choice.options[-1][1]
    assert line.layout.display == ""
    assert form.settings().model_id == ""  # nothing is written yet
    line.value = "acme/Kranich-7B"
    assert form.settings().model_id == "acme/Kranich-7B"
    choice.value = "llama-2-7b"
    assert (line.layout.display, form.settings().model_id) == ("none", "llama-2-7b")
    given = controls(Form("train", model_id="s3://models/chat/"))
    assert (given["Its name or place"].value, given["Its name or place"].layout.display) == ("s3://models/chat/", "")


@pytest.mark.parametrize("step", kit_settings.STEPS)
def test_an_untouched_form_gives_the_defaults(step: str) -> None:
    assert Form(step).settings() == kit_settings.STEPS[step]()


def test_what_is_typed_reaches_the_settings() -> None:
    form = Form("train", epochs=2.0)
    found = controls(form)
    found["Epochs"].value = 3.5
    found["Method"].value = "rslora"
    found["Spot"].value = True
    settings = form.settings()
    assert (settings.epochs, settings.method, settings.spot) == (3.5, "rslora", True)


def test_parameters_are_taken_from_a_notebooks_namespace() -> None:
    namespace = {name: field.default for name, field in kit_settings.UploadSettings.model_fields.items()}
    form = Form("upload", namespace | {"source": "rows.csv", "something_else": 1})
    assert form.settings().source == "rows.csv"
    del namespace["source"]
    with pytest.raises(
        SettingsError, match=r"(?s)no parameter source.*kit's folder, or add to its first cell: source = ''"
    ):
        Form("upload", namespace)
    with pytest.raises(SettingsError, match=r"(?s)not set.*run the cells above"):
        Form("upload", {})


def test_what_was_made_before_is_not_shown_when_the_next_turn_fails() -> None:
    namespace: dict[str, object] = {
        name: field.default for name, field in kit_settings.TrainSettings.model_fields.items()
    }
    form = Form("train", namespace)
    namespace |= {"job": "of the last turn", "mine": 1}
    controls(form)["Epochs"].value = 0.0
    with pytest.raises(SettingsError):
        form.settings()
    assert "job" not in namespace
    assert namespace["mine"] == 1


def test_all_problems_come_in_one_error_and_are_shown_beside_the_form() -> None:
    form = Form("train", epochs=0.0, lora_r=0, method="loara")
    with pytest.raises(SettingsError) as caught:
        form.settings()
    assert all(name in str(caught.value) for name in ("epochs", "lora_r", "method"))
    assert "Needs a change" in form._verdict.value
    controls(form)["Epochs"].value = 1.0
    controls(form)["LoRA rank"].value = 8
    controls(form)["Method"].value = "dora"
    assert "valid" in form._verdict.value


def test_a_misspelt_parameter_is_refused() -> None:
    with pytest.raises(SettingsError, match="epoch"):
        Form("train", epoch=3)


def test_a_parameter_that_papermill_put_in_under_a_wrong_name_is_refused_with_the_right_one() -> None:
    namespace = {name: field.default for name, field in kit_settings.TrainSettings.model_fields.items()}
    cells = ["", "lora_r = 16", "# Parameters\nlora_rank = 8\nepochs = 2.0\n"]
    with pytest.raises(SettingsError, match=r"lora_rank: there is no such setting") as caught:
        Form("train", namespace | {"In": cells, "lora_rank": 8, "epochs": 2.0})
    assert "lora_r" in str(caught.value)
    assert "epochs: " not in str(caught.value)
    assert Form("train", namespace | {"In": [*cells[:2], "x = 1"], "x": 1}).settings().lora_r == 16


def test_what_is_wrong_is_named_by_its_label_and_its_group_opens() -> None:
    form = Form("train", lora_r=16)
    assert opened(form) == []
    controls(form)["LoRA rank"].value = 0
    assert "<b>LoRA rank</b> (lora_r): must be at least 1 (it is 0)" in form._verdict.value
    assert opened(form) == ["Adapter and batches"]


def test_an_empty_field_says_what_is_taken_instead() -> None:
    found = controls(Form("train"))
    assert found["Run name"].placeholder == "the newest run"
    assert found["Base model"].label == "(the one chosen in 00_start)"
    assert Form("train").settings().model_id == ""


@pytest.mark.parametrize("step", kit_settings.STEPS)
def test_what_is_taken_instead_of_an_empty_field_fits_into_it(step: str) -> None:
    shown = [getattr(control, "placeholder", "") for control in controls(Form(step)).values()]
    assert max(map(len, shown)) <= 40


def test_no_control_corrects_a_value_in_silence() -> None:
    form = Form("upload")
    assert not any(
        isinstance(widget, ipywidgets.BoundedIntText | ipywidgets.BoundedFloatText | ipywidgets.IntSlider)
        for widget in controls(form).values()
    )


@dataclass(frozen=True)
class Beside:
    epochs: float

    def _repr_html_(self) -> str:
        return f"<b>{self.epochs} epochs</b>"


def test_what_stands_beside_the_form_follows_it() -> None:
    form = Form("train").beside(lambda settings: Beside(settings.epochs))
    assert "1.0 epochs" in form._beside.value
    controls(form)["Epochs"].value = 4.0
    assert "4.0 epochs" in form._beside.value
    controls(form)["Epochs"].value = -1.0
    assert "as soon as all settings are valid" in form._beside.value


def test_an_error_beside_the_form_is_text_and_does_not_raise() -> None:
    def look(settings: kit_settings.TrainSettings) -> Beside:
        raise NotFoundError("There is no dataset <yet>.")

    form = Form("train").beside(look)
    assert "There is no dataset &lt;yet&gt;." in form._beside.value
    assert "Not ready yet" in form._verdict.value
    assert "All settings are valid" not in form._verdict.value


def test_what_the_next_cell_would_refuse_is_said_before_it_is_run() -> None:
    def look(settings: kit_settings.TrainSettings) -> Card:
        return Card("Quote", blocked="" if settings.budget_usd else "no budget is set")

    form = Form("train").beside(look)
    assert "no budget is set" in form._verdict.value
    controls(form)["Budget in USD"].value = 5.0
    assert form._verdict.value == "<p role='status'>All settings are valid. Run the next cell.</p>"


def test_what_would_mend_the_settings_is_taken_with_a_click() -> None:
    def look(settings: kit_settings.TrainSettings) -> Card:
        fits = settings.instance_type == "ml.g5.12xlarge"
        return Card(
            "Quote", blocked="" if fits else "too small", offer={} if fits else {"instance_type": "ml.g5.12xlarge"}
        )

    form = Form("train").beside(look)
    assert form._taken.description == "Set Instance type to ml.g5.12xlarge"
    assert form._taken.layout.display == ""
    form._taken.click()
    assert form.settings().instance_type == "ml.g5.12xlarge"
    assert form._taken.layout.display == "none"
    assert "Run the next cell" in form._verdict.value
    controls(form)["Instance type"].value = "ml.g5.xlarge"
    assert form._taken.layout.display == ""
    controls(form)["Epochs"].value = -1.0
    assert form._taken.layout.display == "none"


def test_in_a_notebook_a_slow_look_keeps_nothing_from_the_next_cell() -> None:
    asked, began, go_on = [], threading.Event(), threading.Event()

    def look(settings: kit_settings.TrainSettings) -> Beside:
        asked.append(settings.epochs)
        if settings.epochs > 1:
            began.set()
            assert go_on.wait(30)
        return Beside(settings.epochs)

    async def typed() -> None:
        form = Form("train").beside(look)
        looking = asyncio.Event()
        form._beside.observe(lambda _: looking.set(), names="value")
        controls(form)["Epochs"].value = 2.0
        assert await asyncio.to_thread(began.wait, 30)
        for epochs in (3.0, 4.0):
            controls(form)["Epochs"].value = epochs  # comes back although the look at 2.0 does not
            await asyncio.sleep(0)
        await asyncio.wait_for(looking.wait(), 30)
        assert "Looking" in form._beside.value
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        await form._looking
        assert "4.0 epochs" in form._beside.value
        assert asked == [1.0, 2.0, 4.0]  # what was typed over meanwhile is not looked at
        controls(form)["Epochs"].value = 5.0
        assert form.settings().epochs == 5.0
        assert "5.0 epochs" in form._beside.value

    asyncio.run(typed())


def test_a_defect_of_the_look_is_shown_and_not_hidden() -> None:
    def look(settings: kit_settings.TrainSettings) -> Beside:
        if settings.epochs > 1:
            raise ZeroDivisionError("no rows")
        return Beside(settings.epochs)

    async def typed() -> None:
        form = Form("train").beside(look)
        controls(form)["Epochs"].value = 2.0
        with pytest.raises(ZeroDivisionError):
            await form._looking
        assert "no rows" in form._beside.value

    asyncio.run(typed())


def test_a_text_of_several_lines_is_looked_at_when_it_is_written_not_while_it_is_typed() -> None:
    assert controls(Form("invoke"))["Prompt"].continuous_update is False


def test_headless_the_form_shows_its_values_as_text() -> None:
    bundle = Form("upload", source="rows.csv")._repr_mimebundle_()
    assert bundle["text/plain"] == "source = 'rows.csv'\n(6 parameters at their defaults)"
    assert "application/vnd.jupyter.widget-view+json" in bundle


@pytest.mark.parametrize("step", kit_settings.STEPS)
def test_every_folded_field_is_a_setting_and_stands_in_one_group(step: str) -> None:
    names = [name for group in groups.of(step).values() for name in group]
    assert len(names) == len(set(names))
    assert set(names) <= set(kit_settings.STEPS[step].model_fields)


def opened(form: Form) -> list[str]:
    groups = [item.children for item in form._box.children[0].children if isinstance(item, ipywidgets.VBox)]
    for button, rows in groups:
        assert isinstance(button, ipywidgets.ToggleButton)  # which the keyboard reaches
        assert button.value == (rows.layout.display != "none")
    return [button.description for button, _ in groups if button.value]


def test_a_group_is_open_where_a_parameter_is_not_the_default() -> None:
    assert opened(Form("prepare")) == []
    assert opened(Form("prepare", compute="processing-job")) == ["As a Processing job"]
    assert opened(Form("train", target="aws", lora_r=8)) == ["Adapter and batches", "Where it runs, and as whom"]
