"""What the paper leaves open is marked where it is decided, so that nobody takes our choice for the paper's."""
import inspect

import pytest

import config
import data
import selection
import train
from downstream import classification, events
from model import contrastive_loss


@pytest.mark.parametrize('place, words', [
    (selection, 'does not define FRS alone'), (events.second_embedding, 'does not say how a second is represented'),
    (train.pretrain, 'does not say whether ℓ^r is left out'), (data.augment_audio, 'does not say how far the roll'),
    (classification.measure, 'no task border is used'), (contrastive_loss, 'averages them')])
def test_an_open_choice_is_marked(place, words):
    assert words in ' '.join(inspect.getsource(place).replace('#', ' ').split())


@pytest.mark.parametrize('option', ['alpha', 'gmed_alpha', 'gmed_beta', 'cls_er_alpha_s', 'cls_er_lam', 'lump_beta'])
def test_options_whose_row_of_table_5_is_damaged_say_so(option):
    assert 'damaged' in config.Config.__dataclass_fields__[option].metadata['help']
