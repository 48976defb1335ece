"""The tree of errors is the one drawn at the top of its file, and each says a sentence."""

import re

import ecluse.errors
from ecluse.errors import BrokerUnreachable, DeliveryError, EcluseError, RecordError, SettingsError, Stage, TopicsWrong


def drawn() -> dict[str, str]:
    """Each error in the drawing, with the one that it hangs on."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in (ecluse.errors.__doc__ or "").splitlines():
        if found := re.match(r"^((?:│   |    )*(?:[├└]── )?)([A-Z]\w+)( |$)", line):
            depth = len(found[1]) // 4
            if depth == 0 and found[2] != "EcluseError":
                continue  # the title
            above[depth:] = [found[2]]
            parents[found[2]] = above[depth - 1] if depth else "Exception"
    return parents


def real(error: type[Exception] = EcluseError) -> dict[str, str]:
    parents = {error.__name__: error.__bases__[0].__name__}
    for child in error.__subclasses__():
        if child.__module__ == ecluse.errors.__name__:
            parents |= real(child)
    return parents


def test_the_tree_drawn_at_the_top_is_the_real_one() -> None:
    assert len(real()) > 10
    assert drawn() == real()


def test_no_error_of_ours_lives_outside_the_file() -> None:
    import console.main  # noqa: F401  # imports what there is

    def below(error: type[Exception]) -> set[type[Exception]]:
        return {error}.union(*(below(child) for child in error.__subclasses__()))

    strangers = {error for error in below(EcluseError) if error.__module__ != ecluse.errors.__name__}
    assert not strangers


def test_every_error_has_a_docstring() -> None:
    for name in real():
        assert getattr(ecluse.errors, name).__doc__, name


def test_errors_say_a_sentence_and_carry_their_data() -> None:
    unreachable = BrokerUnreachable("kafka:9092", "timed out")
    assert "No Kafka broker answers at kafka:9092 (timed out)" in str(unreachable)
    assert "without either, `ecluse broker start`" in str(unreachable)  # with one set, it starts nothing
    assert (unreachable.servers, unreachable.reason) == ("kafka:9092", "timed out")
    for several in (SettingsError(["One.", "Two."]), TopicsWrong(["One.", "Two."])):
        assert (str(several), several.problems) == ("One.\nTwo.", ("One.", "Two."))
    undelivered = DeliveryError("events", "too large")
    assert str(undelivered) == "A record for events was not delivered: too large"
    record = RecordError(Stage.SCORE, "The model raised.")
    assert (str(record), record.stage, record.reason) == ("The model raised.", "score", "The model raised.")
