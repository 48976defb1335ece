"""`ecluse model`: from training to service."""

import typer

from console.model_keys import sign, verify
from console.model_register import register
from console.model_routes import list_versions, promote, rollback
from console.model_show import show
from console.model_status import status
from console.model_study import study
from console.model_train import train

app = typer.Typer(help="Models: train, release, sign and promote them.", no_args_is_help=True)

# In the order in which a model meets them.
app.command()(study)
app.command()(train)
app.command()(register)
app.command("list")(list_versions)
app.command()(show)
app.command()(sign)
app.command()(verify)
app.command()(promote)
app.command()(rollback)
app.command()(status)
