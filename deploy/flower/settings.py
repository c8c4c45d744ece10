"""Settings of one hospital on a stock SuperNode."""

from pathlib import Path

from pydantic import Field

from knowmine.client.settings import DataSettings, MachineSettings, SamSettings
from knowmine.shared.settings import FilePath, ModelSettings, Settings, SiteName


class NodeSettings(Settings):
    """The keys of `--node-config`, or of the file that it names."""

    site: SiteName = Field(description="This site's name in the federation.")
    data: FilePath = Field(description="Folder of images/ and masks/; it is only read.")
    state: FilePath = Field(
        Path("knowmine-state"), description="Folder of what the site keeps between messages."
    )
    model: ModelSettings = Field(
        default_factory=ModelSettings, description="The network that this site agreed to train."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Draws the calibration and test images.")
    split: DataSettings = Field(
        default_factory=DataSettings, description="How the folder is divided."
    )
    sam: SamSettings = Field(default_factory=SamSettings, description="The large model.")
    machine: MachineSettings = Field(
        default_factory=MachineSettings, description="How the machine is used."
    )
