from dataclasses import dataclass


@dataclass(frozen=True)
class DownloadOptions:
    pass


class Downloads:
    pass
