"""The images of Label Studio's tasks: below a folder of this machine, else from Label Studio itself."""

import json
import os
import tempfile
import urllib.error
import urllib.request
from functools import lru_cache
from http.client import HTTPException
from urllib.parse import quote, urlsplit

import numpy as np

from boxsup_d2.data.formats.folders import ImageFinder
from boxsup_d2.data.images import read_image

# Environment variables that Label Studio's own backends read, too.
URL_VARIABLE, KEY_VARIABLE = "LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"
# Images that stay in memory: one after the other is labelled, box by box.
_KEPT = 4
_TIMEOUT = 30  # seconds
_MAX_BYTES = 2**30


class TaskImages:
    """Reads the images that tasks name."""

    def __init__(self, folder: str | None = None, url: str | None = None, key: str | None = None):
        """
        Args:
            folder: of images, which are looked for by the ends of their names first; None: there is none.
            url: address of Label Studio; None: of the environment.
            key: its API key, a personal access token or a legacy one; None: of the environment. It is shown to that
                address alone.
        """
        self._folder = folder
        self._finder = None if folder is None else ImageFinder(folder)
        self._url = (os.environ.get(URL_VARIABLE, "") if url is None else url).rstrip("/")
        self._key = os.environ.get(KEY_VARIABLE, "") if key is None else key
        self.read = lru_cache(_KEPT)(self._read)

    def _read(self, name: str) -> np.ndarray:
        """The pixels (H×W×3 uint8, R, G, B; upright) of an image.

        Args:
            name: as a task has it: ``/data/local-files/?d=...``, ``/data/upload/...``, or an address of Label Studio.

        Raises:
            FileNotFoundError: it is nowhere.
            ValueError: it cannot be read.
            OSError: Label Studio does not give it.
        """
        path = self._below_folder(name)
        if path is not None:
            return read_image(path, "RGB")
        address = self._address(name)
        if address is None:
            raise FileNotFoundError(
                f"The image '{name}' was not found: name the folder that holds it as --images, or set {URL_VARIABLE} "
                f"and {KEY_VARIABLE} to the Label Studio that has it."
            )
        with tempfile.NamedTemporaryFile(suffix=os.path.splitext(urlsplit(address).path)[1]) as file:
            file.write(self._fetch(address, name))
            file.flush()
            try:
                return read_image(file.name, "RGB")
            except ValueError as error:
                raise ValueError(str(error).replace(file.name, name)) from error

    def _below_folder(self, name: str) -> str | None:
        if self._folder is None or self._finder is None:
            return None
        found = self._finder.named(name)
        if found is None:  # it may be new
            self._finder = ImageFinder(self._folder)
            found = self._finder.named(name)
        return None if found is None else os.path.join(self._folder, found)

    def _address(self, name: str) -> str | None:
        """Where Label Studio has an image; None: it has none of this name."""
        if not self._url:
            return None
        home, given = urlsplit(self._url), urlsplit(name)
        if name.startswith("/"):  # a second "/" does not make another host of it
            below = home.path and name.startswith(f"{home.path}/")
            return (f"{home.scheme}://{home.netloc}" if below else self._url) + name
        same = (given.scheme, given.netloc) == (home.scheme, home.netloc) and given.scheme in ("http", "https")
        return name if same else None

    def _fetch(self, address: str, name: str) -> bytes:
        try:
            request = urllib.request.Request(quote(address, safe="%/:=&?~#+!$,;'@()*[]"))
            # Unredirected: Label Studio sends on to stores of others, which the key is no business of.
            if self._key:
                request.add_unredirected_header("Authorization", self._authorization())
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                content: bytes = answer.read(_MAX_BYTES + 1)
        except (OSError, HTTPException, ValueError) as error:
            hint = ""
            if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404):
                hint = f" Set {KEY_VARIABLE} to a key of somebody who may see it, or start with --images FOLDER."
            raise OSError(f"Label Studio does not give the image '{name}' ({error}).{hint}") from error
        if len(content) > _MAX_BYTES:
            raise ValueError(f"The image '{name}' has more than {_MAX_BYTES >> 20} MB.")
        return content

    def _authorization(self) -> str:
        """The header's value. Personal access tokens (JWT) are changed for one that holds for some minutes."""
        if not (self._key.startswith("ey") and self._key.count(".") == 2):
            return f"Token {self._key}"
        request = urllib.request.Request(
            f"{self._url}/api/token/refresh/",
            json.dumps({"refresh": self._key}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            access = json.load(answer)
        if not isinstance(access, dict) or not isinstance(access.get("access"), str):
            raise ValueError("it gives no access token for this key")
        return f"Bearer {access['access']}"
