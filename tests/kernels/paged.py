"""Caches in pages for tests: in a random order, with prefixes that rows share, and a page that nobody reads."""

import torch

PAGE = 64


class Paged:
    """Pages of caches [.., B, KV, S, D], S a multiple of 64, where row b holds the first `held[b]` pages of its own.

    Rows from 1 on hold row 0's first `shared` pages in place of their own; the caches should say the same there.
    """

    def __init__(self, *caches, held, shared=0):
        *self.lead, batch, kv_heads, capacity, dim = caches[0].shape
        count, device = capacity // PAGE, caches[0].device
        numbers = (1 + torch.randperm(2 * batch * count)[: batch * count]).view(batch, count).to(device)
        numbers[1:, :shared] = numbers[:1, :shared]
        self.holds = torch.arange(count, device=device) < torch.tensor(held, device=device)[:, None]
        self.table = torch.where(self.holds, numbers, 0).int()
        self.pages = []
        for cache in caches:
            shape = (*self.lead, 1 + 2 * batch * count, kv_heads, PAGE, dim)
            buffer = torch.randn(*shape[:-1], dim + 8, device=device).to(cache.dtype)
            pages = buffer[..., 8:]  # a view in a larger one
            pages[..., numbers.flatten(), :, :, :] = self.split(cache)
            self.pages.append(pages)
        self.before = [pages.clone() for pages in self.pages]

    def split(self, cache):
        """[.., B, KV, S, D] as pages [.., B * T, KV, 64, D]."""
        at = len(self.lead)
        return cache.unflatten(at + 2, (-1, PAGE)).transpose(at + 1, at + 2).flatten(at, at + 1)

    def expected(self, *caches):
        """The pages if they held these caches now, but for the one of nobody."""
        found = [pages.clone() for pages in self.before]
        at, held = self.table.flatten().long(), self.holds.flatten()
        for pages, cache in zip(found, caches, strict=True):
            pages[..., at[held], :, :, :] = self.split(cache)[..., held, :, :, :]
        return found

    def assert_holds(self, *caches):
        """Exactly these, and nothing else has changed."""
        for pages, right in zip(self.pages, self.expected(*caches), strict=True):
            at = len(self.lead)
            assert torch.equal(pages.narrow(at, 1, pages.shape[at] - 1), right.narrow(at, 1, right.shape[at] - 1))
