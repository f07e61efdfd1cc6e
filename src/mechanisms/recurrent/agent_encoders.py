"""What agents see before their memory does: a small perceptron, and BabyAI's encoder of a picture and a mission."""

from collections.abc import Sequence

from mechanisms._base.extras import require
from mechanisms._base.validation import check_number

require("stable_baselines3", "rl")  # first, for its clear message

import torch  # noqa: E402
from gymnasium import spaces  # noqa: E402
from stable_baselines3.common.preprocessing import is_image_space_channels_first  # noqa: E402
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor  # noqa: E402
from torch import Tensor, nn  # noqa: E402


class MlpEncoder(BaseFeaturesExtractor):
    """Linear layers with ReLU over a flat observation.

    Args:
        observation_space: a box.
        sizes: of the layers; the last is that of the features.

    >>> import numpy as np
    >>> MlpEncoder(spaces.Box(0, 1, (5,), np.float32), [8])(torch.ones(2, 5)).shape
    torch.Size([2, 8])
    """

    def __init__(self, observation_space: spaces.Space, sizes: Sequence[int] = (64,)) -> None:
        super().__init__(observation_space, sizes[-1])
        before = spaces.flatdim(observation_space)
        layers: list[nn.Module] = [nn.Flatten()]
        for size in sizes:
            layers += [nn.Linear(before, size), nn.ReLU()]
            before = size
        self.layers = nn.Sequential(*layers)

    def forward(self, observations: Tensor) -> Tensor:
        """Features (batch, sizes[-1])."""
        return self.layers(observations)


class BabyAIEncoder(BaseFeaturesExtractor):
    """The encoder `cnn1` of BabyAI's agents, and a GRU over the words of the mission.

    Picture: convolution 2x2 to 16 channels, ReLU, max-pooling 2, convolution 2x2 to 32, ReLU, convolution 2x2 to 128,
    ReLU, flattened (128 features of a view of 7x7 cells). Mission: embedding and GRU, its state after the last word.
    The features are both, side by side.

    Args:
        observation_space: a dictionary with "image", (height, width, 3) or (3, height, width), and "mission",
            whole numbers (words,) with 0 after the last word.
        vocabulary_size: number of words, that of nothing (0) included; by default what the space of the missions
            allows.
        word_size, mission_size: sizes of the embedding and of the GRU.
        divide_by: the picture's numbers are divided by it: 10 suits MiniGrid's symbols, 255 pictures in colours.

    Raises:
        ValueError: the space has no "image" or no "mission", or a view too small for the convolutions.

    Source:
        mila-iqia/babyai, `ACModel` with arch "cnn1" and instructions by GRU.

    >>> import numpy as np
    >>> space = spaces.Dict({
    ...     "image": spaces.Box(0, 255, (7, 7, 3), np.uint8), "mission": spaces.Box(0, 20, (6,), np.int64)
    ... })
    >>> encoder = BabyAIEncoder(space)
    >>> encoder({"image": torch.zeros(2, 7, 7, 3), "mission": torch.tensor([[3, 4, 0, 0, 0, 0]] * 2)}).shape
    torch.Size([2, 256])
    """

    # The policy asks for this, so that sb3 leaves the symbols as they are.
    scales_images = True

    def __init__(
        self,
        observation_space: spaces.Space,
        vocabulary_size: int | None = None,
        word_size: int = 128,
        mission_size: int = 128,
        divide_by: float | int = 10,
    ) -> None:
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
        if not {"image", "mission"} <= parts.keys():
            raise ValueError(
                f"the observations are {observation_space}; BabyAIEncoder needs a dictionary with 'image' and 'mission'"
            )
        image, mission = parts["image"], parts["mission"]
        if not isinstance(image, spaces.Box) or len(image.shape) != 3:
            raise ValueError(f"the image is {image}; a box of three dimensions is expected")
        if not isinstance(mission, spaces.Box) or len(mission.shape) != 1:
            raise ValueError(f"the mission is {mission}; a box of whole numbers, one for each word, is expected")
        self._channels_first = image.shape[0] <= 4 < image.shape[-1] or (
            image.shape[-1] > 4 and is_image_space_channels_first(image)
        )
        height, width = image.shape[1:] if self._channels_first else image.shape[:2]
        channels = image.shape[0] if self._channels_first else image.shape[2]
        cells = [((side - 1) // 2) - 2 for side in (height, width)]
        if min(cells) < 1:
            raise ValueError(f"the image has {height} x {width} cells; the three convolutions need at least 7 x 7")
        super().__init__(observation_space, 128 * cells[0] * cells[1] + mission_size)
        self.divide_by = check_number(divide_by, "divide_by", above=0)
        self.image = nn.Sequential(
            nn.Conv2d(channels, 16, 2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 2),
            nn.ReLU(),
            nn.Conv2d(32, 128, 2),
            nn.ReLU(),
            nn.Flatten(),
        )
        words = int(mission.high.max()) + 1 if vocabulary_size is None else vocabulary_size
        self.words = nn.Embedding(words, word_size, padding_idx=0)
        self.mission = nn.GRU(word_size, mission_size, batch_first=True)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Features (batch, image features + mission_size)."""
        image = observations["image"].to(self.words.weight.dtype) / self.divide_by
        if not self._channels_first:
            image = image.movedim(-1, 1)
        return torch.cat([self.image(image), self._read(observations["mission"].long())], 1)

    def _read(self, words: Tensor) -> Tensor:
        # A mission is the same for an episode and shared by many, so each is read once.
        unique, where = torch.unique(words, dim=0, return_inverse=True)
        states, _ = self.mission(self.words(unique))
        last = (unique != 0).sum(1).clamp(min=1) - 1
        return states[torch.arange(len(unique), device=words.device), last][where]
