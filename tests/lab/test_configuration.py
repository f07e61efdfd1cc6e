import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechanisms.lab.configuration import ConfigError, as_dict, config, config_hash, override


@config
class Settings:
    epochs: int = 3
    lr: float = 0.1
    balanced: bool = True
    name: str = "a"
    sizes: tuple[int, ...] = (4, 4)
    limit: int | None = None


@given(st.integers(1, 10**6), st.floats(1e-9, 1e9), st.booleans())
def test_values_are_read_as_their_fields_types_say(epochs: int, lr: float, balanced: bool) -> None:
    chosen = override(Settings(), [f"epochs={epochs}", f"lr={lr!r}", f"balanced={balanced}"])
    assert (chosen.epochs, chosen.lr, chosen.balanced) == (epochs, lr, balanced)


def test_words_json_and_null_can_be_given() -> None:
    chosen = override(Settings(), ["name=12", "sizes=[64, 32]", "limit=7"])
    assert (chosen.name, chosen.sizes, chosen.limit) == ("12", (64, 32), 7)
    assert override(chosen, ["limit=null"]).limit is None


def test_a_value_may_contain_an_equals_sign() -> None:
    assert override(Settings(), ["name=a=b"]).name == "a=b"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epoch=3", "did you mean epochs"),
        ("epochs=many", "epochs=many: input should be a valid integer"),
        ("epochs=1.5", "epochs=1.5"),
        ("epochs", "write key=value"),
        ("sizes=[1", "sizes="),
        ("lr=true", "lr=true"),
        ("epochs=true", "epochs=true"),
        ("lr=nan", "finite"),
        ("lr=inf", "finite"),
    ],
)
def test_a_bad_override_says_what_was_given_and_expected(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        override(Settings(), [assignment])


def test_null_is_nothing_where_that_is_allowed_and_a_word_elsewhere() -> None:
    @config
    class Optional:
        path: str | None = "here"
        name: str = "a"

    chosen = override(Optional(), ["path=null", "name=null"])
    assert chosen.path is None
    assert chosen.name == "null"


def test_unknown_fields_are_refused_and_values_checked_at_construction() -> None:
    with pytest.raises(ValueError, match="epoch"):
        Settings(epoch=3)  # pyrefly: ignore
    with pytest.raises(ValueError, match="integer"):
        Settings(epochs="x")  # pyrefly: ignore


def test_the_hash_follows_the_values_alone() -> None:
    assert config_hash(Settings()) == config_hash(override(Settings(), ["epochs=3"]))
    assert config_hash(Settings()) != config_hash(override(Settings(), ["epochs=4"]))
    assert as_dict(Settings())["sizes"] == [4, 4]
