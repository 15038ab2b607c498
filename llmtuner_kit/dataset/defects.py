"""The kinds of defect the preparation looks for: what each means, what is done about it, how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Defect:
    """One kind of defect.

    Attributes:
        effect: rejected (the row goes to rejected.jsonl), duplicate (left out, named in duplicates.jsonl),
            changed (kept, altered as the settings say) or kept (kept as it is, for you to look at).
        by: who mends it: a setting of the preparation, the file it came in, you (look and decide), or nobody need to.
    """

    kind: str
    title: str
    effect: Literal["rejected", "duplicate", "changed", "kept"]
    by: Literal["setting", "file", "you", "nobody"]
    fix: str


# One line each, as a table.
_ALL = (
    # Found while reading.
    Defect("wrong_encoding", "bytes that are not text", "rejected", "file", "save the file as UTF-8"),
    Defect("malformed_json", "not JSON", "rejected", "file", "mend the line; every row must be one JSON object"),
    Defect("malformed_row", "not a table row", "rejected", "file", "check the quotes of this row"),
    Defect("wrong_field_count", "fields do not match the header", "rejected", "file", "quote fields that hold the delimiter"),
    Defect("too_large", "row too large", "rejected", "file", "split the text into several rows"),
    Defect("unreadable_file", "file that cannot be read", "rejected", "file", "open it where it was made and save it again"),
    Defect("no_text", "document without text", "rejected", "file", "a scan needs text recognition first; a page of links alone has nothing to learn from"),
    # Found while converting.
    Defect("not_an_object", "row is not an object", "rejected", "file", "every row must be an object with named fields"),
    Defect("unknown_fields", "fields of no known shape", "rejected", "setting", "name the columns in the settings"),
    Defect("missing_column", "row without a column that a template names", "rejected", "setting", "put the file into leave_out, or name columns that all files have"),
    Defect("missing_field", "a field is missing", "rejected", "file", "add the field, or take the row out"),
    Defect("not_text", "a field is not text", "rejected", "file", "write numbers, lists and objects as text"),
    Defect("empty_prompt", "nothing is asked", "rejected", "file", "fill the question in, or take the row out"),
    Defect("empty_answer", "empty answer", "rejected", "file", "fill the answer in, or take the row out"),
    Defect("no_messages", "no messages in the conversation", "rejected", "file", "take the row out"),
    Defect("bad_message", "message without role or content", "rejected", "file", "every message needs role and content"),
    Defect("unknown_role", "role the models do not have", "rejected", "file", "use system, user and assistant"),
    Defect("no_answer", "conversation without an answer", "rejected", "file", "end the conversation with an assistant message"),
    Defect("answer_first", "answer before any question", "rejected", "file", "start with a user message"),
    Defect("half_character", "half of a character", "rejected", "file", "export the text again as UTF-8"),
    Defect("too_short", "too short for the plain-text rule", "rejected", "setting", "raise passage_tokens, or join short texts"),
    Defect("template_refused", "refused by the model's template", "rejected", "file", "let user and assistant take turns"),
    Defect("nothing_trained", "no token to learn from", "rejected", "setting", "raise max_length or shorten the prompt"),
    Defect("over_length", "longer than max_length, left out", "rejected", "setting", "raise max_length, or choose cut or split"),
    # Found by comparing rows.
    Defect("exact_duplicate", "the same row again", "duplicate", "nobody", "nothing to do"),
    Defect("near_duplicate", "almost the same row again", "duplicate", "setting", "set near_duplicates to keep to keep them"),
    Defect("conflicting_answers", "same question, different answers", "kept", "you", "decide which answer is right"),
    Defect("leaked_question", "training question that is held out too", "kept", "you", "take it out of one of the files, or set splits_from to content"),
    # Found by looking at the text; the row is kept.
    Defect("cut", "longer than max_length, end cut off", "changed", "setting", "raise max_length, or choose split or drop"),
    Defect("split", "longer than max_length, made into several rows", "changed", "nobody", "nothing to do"),
    Defect("turns", "two messages in a row of the same side", "kept", "you", "join them into one message"),
    Defect("trailing_question", "messages after the last answer", "kept", "you", "they are not learned from; take them out"),
    Defect("one_word_answer", "answer of a single word", "kept", "you", "fine for classification, else write it out"),
    Defect("echo", "answer repeats the question", "kept", "you", "replace the answer or take the row out"),
    Defect("placeholder", "answer is a placeholder", "kept", "file", "replace TODO, N/A and the like by real answers"),
    Defect("repetition", "text that repeats itself", "kept", "you", "shorten it or take the row out"),
    Defect("broken_characters", "text was decoded wrongly once", "kept", "file", "export it again as UTF-8 (Ã© was é)"),
    Defect("control_characters", "invisible control characters", "kept", "file", "remove them at the source"),
    Defect("markup", "left-over HTML", "kept", "file", "convert it to plain text or Markdown"),
    Defect("template_tokens", "the model's own control tokens in the text", "kept", "file", "remove them from the text"),
    Defect("email", "email address", "kept", "setting", "set mask_personal_data"),
    Defect("phone", "phone number", "kept", "setting", "set mask_personal_data"),
    Defect("card_number", "payment card number", "kept", "setting", "set mask_personal_data"),
    Defect("secret", "key, token or password", "kept", "file", "revoke it, and set mask_personal_data"),
    Defect("iban", "bank account number", "kept", "setting", "set mask_personal_data"),
    Defect("ip_address", "IP address", "kept", "setting", "set mask_personal_data"),
)  # fmt: skip
DEFECTS: dict[str, Defect] = {defect.kind: defect for defect in _ALL}


class RowError(ValueError):
    """A record that cannot become a row: kind of defect and what exactly was found."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason
