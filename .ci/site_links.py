"""For mkdocs: links to files that are no pages (configs, tools) become their names, once they are checked."""
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_OUTSIDE = re.compile(r'\[([^\]]+)\]\(\.\./([^)#\s]+)[^)\s]*\)')


def on_page_markdown(markdown, page, **_):
    """Take the link off, and refuse one to nowhere: the build ends."""
    def name(link):
        if not (ROOT / link[2]).exists():
            raise FileNotFoundError(f'docs/{page.file.src_uri}: ../{link[2]} is not there')
        return link[1] if '`' in link[1] else f'`{link[1]}`'
    return _OUTSIDE.sub(name, markdown)
