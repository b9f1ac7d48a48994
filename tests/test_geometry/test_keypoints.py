import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection import roi_heads

from boxdet.geometry import keypoints as K


def rois(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(n, 2, generator=g) * 50, torch.rand(n, 2, generator=g) * 70 + 0.2
    return torch.cat([corner, corner + size], 1)


def test_decode_equals_torchvision():
    boxes = torch.cat([rois(9), torch.tensor([[0., 0, 30, 40], [5, 5, 35, 45]])])        # two of one size
    maps = torch.randn(11, 5, 14, 14, generator=torch.Generator().manual_seed(1))
    keypoints, scores = K.decode_heatmaps(maps, boxes)
    peer, peer_scores = roi_heads.keypointrcnn_inference(maps, [boxes])
    assert torch.equal(keypoints, peer[0][..., :2])
    assert torch.equal(scores, peer_scores[0])


def test_heatmaps_of_many_sizes_are_decoded_with_one_copy_to_the_gpu(monkeypatch):
    from collections import namedtuple

    from tests.emulated_gpu import emulated_gpu, watched_copies
    sizes = [(60 + i, 50 + i) for i in range(20)]
    Sizes = namedtuple('Sizes', 'device long')
    with emulated_gpu():
        # Fake tensors have no numbers: the sizes, which one copy brings to the host, are given.
        pixels = Sizes(torch.device('cuda', 0), lambda: namedtuple('L', 'tolist')(lambda: [(w, h) for h, w in sizes]))
        with watched_copies() as copies:
            found = K._rois_by_size(pixels)
        assert [size for size, _ in found] == sizes and all(index.device.type == 'cuda' for _, index in found)
        heatmaps = torch.empty(20, 17, 56, 56, device='cuda')
        with watched_copies() as more:
            monkeypatch.setattr(K, '_rois_by_size', lambda _: found)
            K.decode_heatmaps(heatmaps, torch.empty(20, 4, device='cuda'))
    assert copies.waited == more.waited == more.beside == [] and copies.beside == ['cpu->cuda:0']


def test_decoding_in_two_steps_finds_the_same():
    torch.manual_seed(0)
    maps = F.interpolate(torch.randn(6, 5, 14, 14), scale_factor=4.0, mode='bilinear')  # as heads enlarge them
    maps[5] = torch.randn(5, 56, 56)
    # Larger than the first step sees whole, along one axis, smaller than the heatmap, below a pixel; noise seen whole.
    boxes = torch.tensor([[3, 4, 260.2, 291.7], [0, 9, 399.5, 30], [5, 5, 100, 61], [0, 0, 30.5, 80.2],
                          [3, 3, 3.2, 3.1], [7, 8, 119, 119.5]])
    for expected, found in zip(K.decode_heatmaps(maps, boxes), K.decode_in_two_steps(maps, boxes, side=400)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    alone = K.decode_in_two_steps(maps[:1], boxes[:1], side=5000)[0]  # what is asked of a large image
    torch.testing.assert_close(alone, K.decode_heatmaps(maps[:1], boxes[:1])[0], rtol=1e-4, atol=1e-4)


def test_encode_equals_torchvision():
    boxes, g = rois(30), torch.Generator().manual_seed(2)
    keypoints = torch.cat([torch.rand(30, 7, 2, generator=g) * 120, torch.randint(3, (30, 7, 1), generator=g)], 2)
    keypoints[0, 0, :2] = boxes[0, 2:]  # on the far corner: inside
    keypoints[0, 0, 2] = 2
    cells, valid = K.encode_heatmaps(keypoints, boxes, 56)
    peer_cells, peer_valid = roi_heads.keypoints_to_heatmap(keypoints, boxes, 56)
    assert torch.equal(cells, peer_cells) and torch.equal(valid, peer_valid.bool())
    assert valid[0, 0] and 0 < valid.sum() < valid.numel()


def test_encode_by_hand():
    box = torch.tensor([[10., 20, 18, 36]])
    keypoint = torch.tensor([[[13.9, 27.9, 2.], [14.0, 28.0, 1], [9.9, 28, 2], [14, 28, 0]]])
    cells, valid = K.encode_heatmaps(keypoint, box, (8, 4))  # cells of 2 x 2 pixels
    assert cells.tolist() == [[3 * 4 + 1, 4 * 4 + 2, 0, 0]]
    assert valid.tolist() == [[True, True, False, False]]


def test_a_degenerate_box_has_no_valid_keypoint():
    keypoint = torch.tensor([[[5., 6, 2]]])
    assert not K.encode_heatmaps(keypoint, torch.tensor([[3., 3, 3, 9]]), 4)[1].any()


def test_encode_then_decode_returns_to_the_cell():
    box = torch.tensor([[10., 20, 66, 76]])                                              # one pixel a cell
    keypoint = torch.tensor([[[30.2, 40.8, 2.], [11.0, 75.9, 2]]])
    cells, _ = K.encode_heatmaps(keypoint, box, 56)
    maps = torch.zeros(1, 2, 56 * 56).scatter_(2, cells[..., None], 10.0).view(1, 2, 56, 56)
    assert torch.allclose(K.decode_heatmaps(maps, box)[0], keypoint[..., :2].floor() + 0.5)


def test_empty():
    keypoints, scores = K.decode_heatmaps(torch.zeros(0, 17, 56, 56), torch.zeros(0, 4))
    assert keypoints.shape == (0, 17, 2) and scores.shape == (0, 17)
    cells, valid = K.encode_heatmaps(torch.zeros(0, 17, 3), torch.zeros(0, 4), 56)
    assert cells.shape == valid.shape == (0, 17)
    assert K.flip_keypoints(torch.zeros(0, 3, 3), (8, 10), [(1, 2)]).shape == (0, 3, 3)


def test_flip():
    keypoints = torch.tensor([[[1., 5, 2], [2, 6, 1], [3, 7, 0]]])
    flipped = K.flip_keypoints(keypoints, (8, 10), [(1, 2)])
    assert flipped.tolist() == [[[9, 5, 2], [7, 7, 0], [8, 6, 1]]]
    assert torch.equal(K.flip_keypoints(flipped, (8, 10), [(1, 2)]), keypoints)
    maps = torch.randn(2, 3, 4, 5)
    assert torch.equal(K.flip_heatmaps(maps, [(1, 2)])[0, 1], maps[0, 2].flip(-1))
    # A keypoint and its heatmap flip to the same place.
    box = torch.tensor([[0., 0, 5, 4]])
    heat = torch.zeros(1, 3, 4, 5)
    heat[0, 0, 1, 1] = heat[0, 1, 2, 3] = heat[0, 2, 3, 0] = 1
    place = K.decode_heatmaps(heat, box)[0]
    assert torch.allclose(K.decode_heatmaps(K.flip_heatmaps(heat, [(1, 2)]), box)[0],
                          K.flip_keypoints(place, (4, 5), [(1, 2)]))
    with pytest.raises(ValueError, match='pair'):
        K.flip_order(3, [(1, 3)])
    with pytest.raises(ValueError, match='pair'):
        K.flip_order(3, [(0, 1), (1, 2)])


def test_flips_up_down_and_half_turns():
    keypoints = torch.tensor([[[1., 5, 2], [2, 6, 1], [3, 7, 0]]])
    # Upside down is a mirror image too; a half turn is none, so left stays left.
    assert K.flip_keypoints(keypoints, (8, 10), [(1, 2)], 'vertical').tolist() == [[[1, 3, 2], [3, 1, 0], [2, 2, 1]]]
    assert K.flip_keypoints(keypoints, (8, 10), [(1, 2)], 'diagonal').tolist() == [[[9, 3, 2], [8, 2, 1], [7, 1, 0]]]
    maps = torch.randn(2, 3, 4, 5)
    assert torch.equal(K.flip_heatmaps(maps, [(1, 2)], 'vertical')[1, 2], maps[1, 1].flip(0))
    assert torch.equal(K.flip_heatmaps(maps, [(1, 2)], 'diagonal')[1, 2], maps[1, 2].flip(0, 1))


def test_probabilities_are_detectrons():
    maps = torch.randn(3, 2, 7, 6, generator=torch.Generator().manual_seed(0)) * 3
    boxes = rois(3)
    _, logits = K.decode_heatmaps(maps, boxes)
    found = K.heatmap_probabilities(maps, logits)
    for r in range(3):
        for j in range(2):
            above = (maps[r, j].double() - logits[r, j]).exp().sum()
            assert found[r, j].item() == pytest.approx(1 / above.item(), rel=1e-5)
    huge = torch.full((1, 1, 2, 2), 500.)
    assert K.heatmap_probabilities(huge, torch.tensor([[500.]])).item() == pytest.approx(0.25)
