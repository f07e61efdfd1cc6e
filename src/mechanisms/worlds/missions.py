"""Missions as numbers: a fixed vocabulary from the mission grammar of MiniGrid's and BabyAI's levels.

A vocabulary that grows while an agent trains, as the first BabyAI code had it, gives two runs different numbers for the
same word. This one is what the grammar of the levels can say, in alphabetical order, before anything is played.
"""

import contextlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, SupportsInt

import numpy as np

from mechanisms._base.extras import require

# What BabyAI's instructions put around colours, kinds of objects and places; its own classes keep them inside methods.
_BABYAI = "go to open pick up put next to the a object in front of you behind you on your left right and then after"
# Its longest action is "put a grey ball on your left next to a grey ball on your left", of 15 words; up to four actions
# are joined by "and" inside a half and by "then" or "after you" between the halves: 16 words for each action hold it.
_WORDS_OF_AN_ACTION = 16


@dataclass(frozen=True)
class Vocabulary:
    """The words that missions are made of, and their numbers.

    Args:
        words: the words; that at place i has the number i + 1, for 0 is padding.
        max_length: most words of a mission.

    >>> vocabulary = Vocabulary(("ball", "go", "red", "the", "to"), max_length=6)
    >>> vocabulary.encode("go to the red ball")
    array([2, 5, 4, 3, 1, 0])
    >>> vocabulary.decode([2, 5, 4, 3, 1, 0])
    'go to the red ball'
    >>> len(vocabulary)  # rows of an embedding
    6
    """

    words: tuple[str, ...]
    max_length: int

    def __post_init__(self) -> None:
        if len(set(self.words)) < len(self.words) or not all(_split(word) == [word] for word in self.words):
            raise ValueError(f"words={self.words}: give lower-case words, each once")
        if self.max_length < 1:
            raise ValueError(f"max_length={self.max_length}: it must be >= 1")

    def __len__(self) -> int:
        return len(self.words) + 1

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each word."""
        return {word: place + 1 for place, word in enumerate(self.words)}

    def encode(self, mission: str) -> np.ndarray:
        """The numbers of a mission's words, padded with zeros to shape (max_length,); int64. Commas are left out.

        Raises:
            KeyError: a word is not in the vocabulary.
            ValueError: the mission is longer than `max_length`.
        """
        words = _split(mission)
        if len(words) > self.max_length:
            raise ValueError(
                f"the mission {mission!r} has {len(words)} words, the vocabulary allows {self.max_length}; "
                "give make_minigrid a larger max_length"
            )
        numbers = np.zeros(self.max_length, np.int64)
        for place, word in enumerate(words):
            if word not in self.numbers:
                raise KeyError(
                    f"the word {word!r} of the mission {mission!r} is not in the vocabulary; build it with "
                    "mission_vocabulary from all levels that will be played"
                )
            numbers[place] = self.numbers[word]
        return numbers

    def decode(self, numbers: Iterable[SupportsInt]) -> str:
        """The words again, without padding; from a row of numbers (array, tensor or list)."""
        return " ".join(self.words[int(number) - 1] for number in numbers if int(number))


def mission_vocabulary(ids: str | Sequence[str], max_length: int | None = None) -> Vocabulary:
    """The vocabulary of all missions that these levels can give, equal for every agent and seed.

    Every BabyAI level contributes the whole BabyAI language, so agents that go from one of them to another keep their
    numbers. Where others follow, name them all here and pass the result to each `make_minigrid`.

    Args:
        ids: levels by their names in gymnasium, for example "BabyAI-GoToObj-v0".
        max_length: most words of a mission; by default what the grammar allows.

    Raises:
        MissingExtra: minigrid is not installed.
        ValueError: there is no level among `ids`, or one has no mission.

    >>> vocabulary = mission_vocabulary(["MiniGrid-GoToObject-6x6-N2-v0"])
    >>> vocabulary.words
    ('ball', 'blue', 'box', 'go', 'green', 'grey', 'key', 'purple', 'red', 'the', 'to', 'yellow')
    >>> vocabulary.max_length
    5
    """
    require("minigrid", "worlds")
    import gymnasium
    from minigrid.core.mission import MissionSpace

    names = level_names(ids)
    words: set[str] = set()
    longest = 1
    for name in dict.fromkeys(names):
        env = gymnasium.make(name, disable_env_checker=True)
        space = getattr(env.observation_space, "spaces", {}).get("mission")
        if not isinstance(space, MissionSpace):
            raise ValueError(f"{name} has no missions; ids are levels of MiniGrid and BabyAI")
        found, length = _of_babyai(env) if _is_babyai(space) else _of_minigrid(space)
        words |= found
        longest = max(longest, length)
        env.close()
    return Vocabulary(tuple(sorted(words)), longest if max_length is None else max_length)


def level_names(ids: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several as a tuple.

    Raises:
        ValueError: there is none.

    >>> level_names("BabyAI-GoToObj-v0")
    ('BabyAI-GoToObj-v0',)
    """
    names = (ids,) if isinstance(ids, str) else tuple(ids)
    if not names:
        raise ValueError("ids is empty; name a level, for example 'BabyAI-GoToObj-v0'")
    return names


def _of_minigrid(space: Any) -> tuple[set[str], int]:
    """Words and length of missions that are a sentence with places for words."""
    choices = space.ordered_placeholders or []
    longest = [max(options, key=lambda option: len(_split(option))) for options in choices]
    words = set(_split(space.mission_func(*longest)))
    for place, options in enumerate(choices):
        for option in options:
            words |= set(_split(space.mission_func(*longest[:place], option, *longest[place + 1 :])))
    return words, len(_split(space.mission_func(*longest)))


def _of_babyai(env: Any) -> tuple[set[str], int]:
    """Words of the BabyAI language, and how long a level's missions can be."""
    from minigrid.envs.babyai.core.verifier import COLOR_NAMES, LOC_NAMES, OBJ_TYPES

    words = {*_split(_BABYAI), *COLOR_NAMES, *OBJ_TYPES, *LOC_NAMES}
    kinds = getattr(env.unwrapped, "instr_kinds", None)
    if kinds is not None:  # a level that draws what its missions look like
        actions = max({"action": 1, "and": 2, "seq": 4}.get(kind, 4) for kind in kinds)
    else:
        with contextlib.redirect_stdout(io.StringIO()):
            env.reset(seed=0)
        actions = _actions(env.unwrapped.instrs)
    return words, _WORDS_OF_AN_ACTION * actions


def _actions(instruction: Any) -> int:
    """How many actions an instruction joins."""
    halves = [getattr(instruction, half, None) for half in ("instr_a", "instr_b")]
    return sum(_actions(half) for half in halves if half is not None) or 1


def _is_babyai(space: Any) -> bool:
    """Whether a mission space leaves the grammar to BabyAI's instructions."""
    from minigrid.envs.babyai.core.roomgrid_level import BabyAIMissionSpace

    return isinstance(space, BabyAIMissionSpace)


def _split(mission: str) -> list[str]:
    return re.findall(r"[a-z]+", mission.lower())
