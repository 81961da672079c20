"""Records that cannot be read, and what stands in for them."""

import math

from absl import logging

from tc_jepa.data.images import EncodedImage
from tc_jepa.data.sources import BadRecord, Captioned, Drawn, Example, Labels
from tc_jepa.errors import UserError

BAD_RECORDS = ("stop", "replace")  # values of data.bad_records


class Replacing:
    """One split, in which the next good record stands in for each bad one: a sources.Captioned.

    After the last record comes the first. What stands in is a function of the index alone, so neither workers nor
    resumes change what is read. Each bad record is logged once by each process that meets it. UserError where they are
    more than `share` of the split; a process counts those that it has met.
    """

    def __init__(self, source: Captioned, name: str, share: float):
        self._source, self._name, self._share = source, name, share
        self._bad: set[int] = set()
        self._instead: dict[int, int] = {}  # good records by bad ones

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example | Drawn:
        while True:
            place = self._instead.get(index, index)
            try:
                return self._read(place)
            except BadRecord as error:
                self._note(place, error)
                self._instead[index] = (place + 1) % len(self)

    def labels(self, index: int) -> Labels:
        """The labels of the example at `index`, which must have been read before."""
        return self._source.labels(self._instead.get(index, index))

    def _read(self, index: int) -> Example | Drawn:
        example = self._source[index]
        if isinstance(example, Example) and isinstance(example.image, EncodedImage):
            example.image.pixels(max(example.image.divisors))  # the cheapest way to know that it decodes
        return example

    def _note(self, index: int, error: BadRecord) -> None:
        if index in self._bad:
            return
        self._bad.add(index)
        count, most = len(self._bad), math.floor(self._share * len(self))
        if count > most:
            raise UserError(
                f"{self._name}: {count} of {len(self)} records are bad, more than data.bad_records_share="
                f"{self._share}; the last is {error}",
                about="data.bad_records_share",
            )
        logging.warning("the next good record replaces a bad one (number %d, at most %d): %s", count, most, error)
