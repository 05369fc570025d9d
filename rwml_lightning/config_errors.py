from lightning.pytorch.cli import LightningArgumentParser


class ReadableParser(LightningArgumentParser):
    pass
