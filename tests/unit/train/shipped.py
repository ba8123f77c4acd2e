"""The configs that ship with distsam, with data where they leave that to the user."""

from pathlib import Path

import numpy as np
from small_encoder import save_encoder, write_texts

from distsam.train.config import Config
from distsam.train.config_file import load_config

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


def load_shipped(path: Path, folder: Path) -> Config:
    """The config; those for data of the user's own get some in `folder`."""
    tensor = np.random.default_rng(0).normal(size=(8, 4, 6))
    np.save(folder / "mine.npy", tensor)
    rows = (f"a{i},b{j},c{k},{value}\n" for (i, j, k), value in np.ndenumerate(tensor))
    (folder / "mine.csv").write_text("a,b,c,value\n" + "".join(rows))
    if path.stem == "sentences":
        save_encoder(folder / "encoder")
        write_texts(folder / "texts.csv")
    given = {
        "file": ["data.path=mine.npy"],
        "table": ["data.path=mine.csv"],
        "sentences": ["data.path=texts.csv", "model.path=encoder"],
    }.get(path.stem, [])
    return load_config(path, [key.replace("=", f"={folder}/") for key in given])
