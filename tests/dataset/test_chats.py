"""WhatsApp's exports become conversations of those who ask and the one who answers; no other text is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset.conftest import Prepare
from llmtuner_kit.dataset import chats, preview
from llmtuner_kit.errors import DataError
from llmtuner_kit.settings import PrepareSettings

IPHONE = """\
[12.03.24, 18:05:11] Lamp shop: \u200eMessages and calls are end-to-end encrypted.
[12.03.24, 18:05:11] Ben: The hub blinks red
[12.03.24, 18:05:40] Ben: and hums: loudly
since today
[12.03.24, 18:06:02] Anna Weiß: Press the button for ten seconds.\u200e <\u200eThis message was edited>
\u200e[12.03.24, 18:07:00] Ben: \u200eimage omitted
[12.03.24, 18:08:00] Anna Weiß: That is the old plug.
[12.03.24, 22:58:00] Ben: Is there a new one?
[13.03.24, 00:03:00] Anna Weiß: Yes, in the shop.
[15.03.24, 00:04:00] Ben: Thanks
"""
ANDROID = """\
3/12/24, 11:58\u202fAM - Messages and calls are end-to-end encrypted. Tap to learn more.
3/12/24, 11:58\u202fAM - Ben added Cleo
3/12/24, 11:59\u202fAM - Ben: Are you open at noon?
3/12/24, 12:01\u202fPM - Cleo: And on Sundays?
3/12/24, 12:02\u202fPM - Anna: At noon we are, on Sundays we are not.
3/12/24, 12:03\u202fPM - Ben: <Media omitted>
3/12/24, 12:04\u202fPM - Cleo: This message was deleted
3/12/24, 12:05\u202fPM - Ben: IMG-20240312-WA0001.jpg (file attached)
3/12/24, 12:05\u202fPM - Ben: Do you sell cables as in list.pdf (page 3)?
3/12/24, 12:06\u202fPM - Anna: Every kind of them.
"""
WHOLE = {"validation_share": 0, "test_share": 0}


def turns(*texts: str) -> dict[str, list[dict[str, str]]]:
    return {
        "messages": [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    }


def test_a_chat_becomes_conversations_that_end_with_a_pause_or_what_is_not_there(prepare: Prepare) -> None:
    built = prepare({"_chat.txt": IPHONE}, output_column="anna weiss, Anna Weiß", **WHOLE)
    assert built.all_rows == [
        turns("The hub blinks red\nand hums: loudly\nsince today", "Press the button for ten seconds."),
        turns("Is there a new one?", "Yes, in the shop."),
    ]
    assert [(row["row"], row["kind"]) for row in built.rejected] == [
        (6, "not_text"), (7, "answer_first"), (10, "no_answer"),
    ]  # fmt: skip
    assert "image omitted" in built.rejected[0]["reason"]
    assert built.report.sources[0].mapping == "chat-export: messages -> messages"


@pytest.mark.parametrize("saved_as", ["utf-8", "utf-8-sig", "utf-16"])
def test_notices_are_passed_over_and_a_group_asks_as_one_side(prepare: Prepare, saved_as: str) -> None:
    data = ANDROID.replace("\n", "\r\n").encode(saved_as)
    built = prepare({"chat.txt": data}, output_column="Anna", system_template="Be kind.", **WHOLE)
    system = {"role": "system", "content": "Be kind."}
    asked = [
        turns("Are you open at noon?\nAnd on Sundays?", "At noon we are, on Sundays we are not."),
        turns("Do you sell cables as in list.pdf (page 3)?", "Every kind of them."),
    ]
    assert built.all_rows == [{"messages": [system, *row["messages"]]} for row in asked]
    assert [(row["row"], row["kind"]) for row in built.rejected] == [(row, "not_text") for row in (6, 7, 8)]


def test_who_answers_is_never_guessed_and_tables_stand_beside_a_chat(prepare: Prepare) -> None:
    with pytest.raises(DataError, match=r"_chat\.txt is a chat of 'Lamp shop', 'Ben', 'Anna Weiß'") as caught:
        prepare({"_chat.txt": IPHONE})
    assert "set output_column to who answers, such as 'Anna Weiß'" in caught.value.fix
    with pytest.raises(DataError, match="conversations, which have no instruction"):
        prepare({"_chat.txt": IPHONE}, output_column="Anna Weiß", instruction_template="Answer.")
    both = {"_chat.txt": IPHONE, "t.csv": "ticket,reply\nIt is dark,Please plug it in\n"}
    assert prepare(both, output_column="Anna Weiß").report.accepted == 3
    plain = prepare({"_chat.txt": IPHONE}, shape="text")
    assert plain.report.sources[0].mapping.startswith("text: ")


def test_the_preview_names_who_speaks_and_then_shows_conversations() -> None:
    data = IPHONE.encode()
    seen = preview.read("_chat.txt", data, len(data), PrepareSettings())
    assert "nothing says whose messages are the answers" in seen.problem
    assert seen.columns == ("Lamp shop", "Ben", "Anna Weiß")
    told = preview.read("_chat.txt", data, len(data), PrepareSettings(output_column="Anna Weiß"))
    assert told.problem == ""
    assert told.rows[0].row == turns(
        "The hub blinks red\nand hums: loudly\nsince today", "Press the button for ten seconds."
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Once there was a lamp.\n[12.03.24, 18:05:11] Ben: hello\n[12.03.24, 18:05:12] Anna: hello\n",
        "[12.03.24, 18:05:11] Ben: a diary\n[13.03.24, 18:05:11] Ben: of one alone\n",
        "[12.03.24, 18:05:11] Ben: a\n[12.03.24, 18:05:12] Anna: b\n" + "It was a dark night.\n" * 5,
        "2024-03-12 18:05:11 - INFO: started\n2024-03-12 18:05:12 - ERROR: broken\n",
        "12.03.24 18:05 Uhr: Ankunft\n12.03.24 18:06 Uhr: Abfahrt\n",
    ],
)
def test_ordinary_text_is_no_chat(text: str, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(text)
    assert chats.names_in(path, "utf-8") == []
