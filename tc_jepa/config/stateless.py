"""What a configuration says of a method without captions, average or teacher: a part of such modules of METHODS."""

import ml_collections


def reads_captions(config: ml_collections.ConfigDict) -> bool:
    return False


def averages_encoder(config: ml_collections.ConfigDict) -> bool:
    return False


def teacher_path(config: ml_collections.ConfigDict) -> str:
    return ""
