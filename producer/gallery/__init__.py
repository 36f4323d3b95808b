"""A page that shows every edit of a batch: what went in, what came out, what was asked.

The page is one file, `page.html`, into which only the rows are put, as JSON; every text of theirs enters the page by
`textContent`, and its content security policy lets nothing be loaded but images that lie beside it. So nothing has to
be escaped in markup, and there is no template language.
"""

from producer.gallery.page import write_gallery

__all__ = ["write_gallery"]
