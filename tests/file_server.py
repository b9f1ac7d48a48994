"""A server of files on the loopback, for tests of downloads."""
import http.server
import re
import threading


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``, a name beginning with ``moved/`` by sending to the rest of it.

    ``asked`` holds (path, range) of every request. ``breaks_off`` ends each answer early.
    """

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.asked, self.breaks_off, self.ranges = {}, [], 0, True
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_port}/'


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        wanted = self.headers.get('Range')
        self.server.asked.append((self.path, wanted))
        if self.path.startswith('/moved/'):
            self.send_response(302)
            self.send_header('Location', self.path.removeprefix('/moved'))
            self.end_headers()
            return
        content = self.server.files.get(self.path.partition('?')[0].lstrip('/'))
        if content is None:
            self.send_error(404)
            return
        begin = int(re.fullmatch(r'bytes=(\d+)-', wanted).group(1)) if wanted and self.server.ranges else 0
        if begin and begin >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        self.send_header('Content-Length', str(len(content) - begin))
        self.end_headers()
        end = self.server.breaks_off or len(content)
        half = (begin + end) // 2
        self.wfile.write(content[begin:half])
        self.wfile.flush()
        self.server.may_go_on.wait(60)  # a client that is to be held has not all of it yet
        self.wfile.write(content[half:end])
