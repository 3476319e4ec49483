"""Pickling of a run's state, whose tensors are kept apart and which may refer to shared objects."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import dill
import torch
from torch import Tensor
from torch.serialization import default_restore_location, location_tag

from protocl.errors import DataError
from protocl.io.pieces import LARGE, ZEROS, KeyedRows, PieceFolder, Place, bytes_of


class StatePickler(dill.Pickler):
    """Pickles a state; the content of its tensors goes to pieces, or where ``put`` puts it.

    Args:
        stream: receives the pickle.
        shared: objects that are saved as their keys.
        put: keeps bytes beside the pickle, and gives their offset.
        pieces: of large tensors; None to ``put`` all.

    Attributes:
        used: names of the pieces that the pickle refers to.
    """

    def __init__(
        self,
        stream: io.BytesIO,
        shared: Mapping[str, object],
        put: Callable[[memoryview], int],
        pieces: PieceFolder | None,
    ) -> None:
        super().__init__(stream, protocol=5)
        self.used: set[str] = set()
        self._shared_keys = {id(value): key for key, value in shared.items()}
        self._put = put
        self._pieces = pieces
        self._keyed: dict[int, tuple[Tensor, Sequence[str]]] = {}
        self._storages: dict[int, tuple[torch.UntypedStorage, Place]] = {}

    def persistent_id(self, obj: object) -> Any:
        """What stands for a storage; as in ``torch.save``, tensors that share one go on sharing."""
        if isinstance(obj, torch.storage.TypedStorage):
            return self._reference(obj._untyped_storage, str(obj.dtype).removeprefix("torch."))
        if isinstance(obj, torch.UntypedStorage):
            return self._reference(obj, None)
        return None

    def reducer_override(self, obj: object) -> Any:
        """What stands for devices, shared objects and tensors of keyed rows."""
        if isinstance(obj, torch.device):
            # Else Avalanche's own reducer is used, which prints when it is read.
            return _device, (str(obj),)
        key = self._shared_keys.get(id(obj))
        if key is not None:
            return _shared, (key,)
        if id(obj) in self._keyed:
            return _rows, self._rows_of(*self._keyed[id(obj)])
        if self._pieces is not None and hasattr(type(obj), "keyed_rows"):
            self._note_rows(cast(KeyedRows, obj))
        return NotImplemented

    def _note_rows(self, owner: KeyedRows) -> None:
        for tensor, keys in owner.keyed_rows():
            if tensor.nbytes >= LARGE:
                self._keyed[id(tensor)] = tensor, keys

    def _reference(self, storage: torch.UntypedStorage, dtype: str | None) -> tuple[Any, ...]:
        if storage._cdata not in self._storages:
            # The storage is held, for another could come to lie where it was.
            self._storages[storage._cdata] = storage, self._placed(storage)
        place = self._storages[storage._cdata][1]
        return (storage._cdata, dtype, location_tag(storage), *place)

    def _placed(self, storage: torch.UntypedStorage) -> Place:
        content = bytes_of(storage)
        if self._pieces is None or len(content) < LARGE:
            return Place(None, self._put(content), len(content))
        name = self._pieces.add(content)
        self.used.add(name)
        return Place(name, 0, len(content))

    def _rows_of(self, tensor: Tensor, keys: Sequence[str]) -> tuple[Any, ...]:
        assert self._pieces is not None
        places = self._pieces.add_rows(tensor, keys)
        self.used |= {str(place.piece) for place in places} - {ZEROS}
        kept = [tuple(place) for place in places]
        return tuple(tensor.shape), tensor.dtype, str(tensor.device), list(keys), kept


class StateUnpickler(dill.Unpickler):
    """Reads what :class:`StatePickler` wrote.

    Args:
        stream: the pickle.
        path: of the checkpoint, which holds what was put beside the pickle.
        shared: the objects that stand for keys.
        target: takes the place of the accelerator that tensors were on; None for none.
        pieces: of large tensors, where there are any.
        stranger: the error for a class that is no longer there.
    """

    def __init__(
        self,
        stream: BinaryIO,
        path: Path,
        shared: Mapping[str, object],
        target: torch.device | None,
        pieces: PieceFolder | None,
        stranger: Callable[[Path], Exception],
    ) -> None:
        super().__init__(stream)
        self._path, self._shared, self._target = path, shared, target
        self._pieces, self._stranger = pieces, stranger
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._replaced = {
            _shared.__name__: self._resolve, _device.__name__: self._device,
            _rows.__name__: self._rows,
        }  # fmt: skip

    def persistent_load(self, saved: Any) -> Any:
        """The storage that a reference stands for."""
        number, dtype, location, *place = saved
        if number not in self._storages:
            content = self._content(Place(*place)).untyped_storage()
            location = str(self._placed(torch.device(location)))
            self._storages[number] = default_restore_location(content, location)
        storage = self._storages[number]
        if dtype is None:
            return storage
        return torch.storage.TypedStorage(
            wrap_storage=storage, dtype=getattr(torch, dtype), _internal=True
        )

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for."""
        if module == __name__ and name in self._replaced:
            return self._replaced[name]
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError) as error:
            raise self._stranger(self._path) from error

    def _content(self, place: Place) -> Tensor:
        content = torch.empty(place.size, dtype=torch.uint8)
        if place.piece is not None:
            self._piece_folder().read(place, content)
            return content
        with self._path.open("rb") as file:
            file.seek(place.offset)
            file.readinto(bytes_of(content))
        return content

    def _piece_folder(self) -> PieceFolder:
        if self._pieces is None:
            raise DataError(f"{self._path} has pieces; read it as a checkpoint of its folder")
        return self._pieces

    def _resolve(self, key: str) -> object:
        if key not in self._shared:
            raise DataError(f"{self._path} needs the shared object '{key}', which was not given")
        return self._shared[key]

    def _device(self, name: str) -> torch.device:
        return self._placed(torch.device(name))

    def _rows(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: str,
        keys: Sequence[str],
        places: Sequence[Sequence[Any]],
    ) -> Tensor:
        rows = torch.empty(shape, dtype=dtype)
        self._piece_folder().read_rows(rows, keys, [Place(*place) for place in places])
        return rows.to(self._device(device))

    def _placed(self, saved: torch.device) -> torch.device:
        return saved if self._target is None or saved.type == "cpu" else self._target


def _shared(key: str) -> object:
    """Stand-in that :class:`StateUnpickler` replaces by a look-up."""
    raise DataError(f"this checkpoint refers to '{key}'; read it with protocl.io.checkpoint.load")


def _device(name: str) -> torch.device:
    """Stand-in of a saved ``torch.device``, likewise replaced."""
    return torch.device(name)


def _rows(*reference: object) -> Tensor:
    """Stand-in of a tensor of keyed rows, likewise replaced."""
    raise DataError("this checkpoint has pieces; read it with protocl.io.checkpoint")
