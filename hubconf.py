"""torch.hub: a trained model in one line. `docs/use.md` shows what it can do.

    model = torch.hub.load(REPO, 'flava', 'runs/x', source='local')
    audio, video = model.embed(['first.mp4', 'second.mp4'])
    order = model.retrieve(audio, video)

In:  a run's folder, one of its models, or a file of weights. No clip of the run is read.
Out: a FlavaModel: embeddings of your own videos, rankings, pictures of where the model looks.
"""
import sys
from pathlib import Path

import torch

# torch.hub adds this folder to sys.path and removes it after loading. A second entry stays, for later imports
ROOT = str(Path(__file__).resolve().parent)
if sys.path.count(ROOT) < 2:
    sys.path.append(ROOT)

from avm import AVM, attend
from config import SIZES, Config, UserError, preset
from data import read_clip
from model import AudioVideoMAE
from patches import normalize_frames, patchify
from utils.checkpoint import read_checkpoint, with_older_defaults
from utils.distributed import autocast, get_device
from utils.video import BadClip
from utils.weights import load_weights

dependencies = ['torch', 'torchaudio', 'numpy', 'av', 'scipy', 'matplotlib', 'filelock', 'pebble', 'joblib', 'tqdm']


def flava(path, size='base', device=''):
    """A trained model → FlavaModel. Raises UserError.

    path    a run's folder (its last model), one of its models, or the authors' weights
    size    base or small; for files of weights that do not hold their own options
    device  '' (a GPU if there is one), 'cpu' or 'cuda'
    """
    from downstream.finished_run import FinishedRun, config_from

    if size not in SIZES:
        raise UserError(f'size {size!r} must be one of {", ".join(SIZES)}')
    path = Path(path)
    if path.is_dir():
        run = FinishedRun(path, workers=0, device=device)
        file, cfg = run.model_files()[-1], run.cfg
    else:
        saved = read_checkpoint(path)
        options = saved.get('config') if isinstance(saved, dict) else None
        file, in_run = path, (path.parent.parent / 'config.json').exists()
        if options:
            cfg = config_from(with_older_defaults(options), path)
        else:
            cfg = FinishedRun(path).cfg if in_run else Config(**preset('vggsound', size))
    model = FlavaModel(cfg)
    print(load_weights(file, model.backbone, model.avm))
    return model.to(get_device(device)).eval()


def as_list(files):
    """One file or several → list. Raises UserError if there are none."""
    files = [files] if isinstance(files, (str, Path)) else list(files)
    if not files:
        raise UserError('no files were given')
    return files


class FlavaModel(torch.nn.Module):
    """The audio-video masked autoencoder and its audio-video matching module, for your own videos."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg, self.backbone, self.avm = cfg, AudioVideoMAE(cfg), AVM(cfg.embed_dim, cfg.avm_heads)

    def read(self, files):
        """Videos with sound → {audio (n, t, f) float32, video (n, T, 3, H, W) uint8} on the model's device.

        Of each video, T seconds in its middle are read. Raises UserError for a file that cannot be used."""
        device = next(self.parameters()).device
        items = []
        for file in as_list(files):
            try:
                items.append(read_clip(str(file), self.cfg))
            except BadClip as error:
                raise UserError(f'{file}: {error}')
        audio, video = zip(*items)
        return dict(audio=torch.stack(audio).to(device), video=torch.stack(video).to(device))

    @torch.no_grad()
    def embed(self, files, batch_size=16):
        """Videos with sound → audio embeddings (n, D), video embeddings (n, D): L2-normalized, float32, on the CPU"""
        files, embeddings = as_list(files), []
        for start in range(0, len(files), batch_size):
            batch = self.read(files[start:start + batch_size])
            with autocast(batch['audio'].device, self.cfg.precision):
                c_a, c_v = self.backbone.embed(batch['audio'], normalize_frames(batch['video']))
            embeddings.append((c_a.float().cpu(), c_v.float().cpu()))
        c_a, c_v = zip(*embeddings)
        return torch.cat(c_a), torch.cat(c_v)

    @staticmethod
    def retrieve(queries, candidates):
        """Embeddings (n, D) and (m, D) → (n, m): for each query the indices of all candidates, most similar first"""
        return (queries @ candidates.T).argsort(dim=1, descending=True)

    @torch.no_grad()
    def importance(self, batch):
        """A batch from `read` → I_a (n, M), I_v (n, N) of Eq. 3: how important each patch is; each row sums to 1"""
        out = attend(self.cfg, self.backbone, self.avm, patchify(batch, self.cfg.patch_size))
        return out.I_a.float().cpu(), out.I_v.float().cpu()

    def draw(self, files):
        """Videos with sound → a matplotlib figure: where the model looks in the frames and in the sound"""
        from downstream.pictures import plot_maps      # not above: embeddings need no matplotlib

        files = as_list(files)
        batch = self.read(files)
        maps_a, maps_v = self.importance(batch)
        clips = [dict(frames=frames.cpu(), audio=audio.cpu(), I_a=I_a, I_v=I_v, truth_a=None, truth_v=None)
                 for frames, audio, I_a, I_v in zip(batch['video'], batch['audio'], maps_a, maps_v)]
        rows = [(Path(file).stem, clip) for file, clip in zip(files, clips)]
        return plot_maps(self.cfg, rows, [('$I_v$', 'I_v')], [('$I_a$', 'I_a')], 'Importance scores (Eq. 3)')
