/* Counts what a process does to one folder on disk, and kills it at a chosen call.
 *
 * Loaded by LD_PRELOAD before libc, so it sees Python, Rust and C++ alike. `kill_at(folder, n)` arms
 * it: the n-th call that creates, writes, syncs, renames, truncates or removes something below the
 * folder is the last one. A write is done by half; nothing is done of any other. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long fatal;
static atomic_long calls;

void kill_at(const char *path, long n) {
    strncpy(folder, path, PATH_MAX - 1);
    fatal = n;
    calls = 0;
}

long num_calls(void) { return calls; }

static int is_below(const char *path) {
    size_t length = strlen(folder);
    return length && !strncmp(path, folder, length) && (!path[length] || path[length] == '/');
}

static int is_fd_below(int fd) {
    char name[64], path[PATH_MAX];
    if (!folder[0]) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

static int is_at_below(int fd, const char *path) {
    return path[0] == '/' || fd == AT_FDCWD ? is_below(path) : is_fd_below(fd);
}

static int is_fatal(int counts) { return counts && ++calls == fatal; }

static void end(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* result name(parameters): of the n-th call nothing is done. */
#define INTERPOSE(result, name, parameters, arguments, below) \
    result name parameters {                                  \
        if (is_fatal(below)) end();                           \
        return REAL(name) arguments;                          \
    }

INTERPOSE(int, fsync, (int fd), (fd), is_fd_below(fd))
INTERPOSE(int, fdatasync, (int fd), (fd), is_fd_below(fd))
INTERPOSE(int, ftruncate, (int fd, off_t size), (fd, size), is_fd_below(fd))
INTERPOSE(int, ftruncate64, (int fd, off64_t size), (fd, size), is_fd_below(fd))
INTERPOSE(int, truncate, (const char *path, off_t size), (path, size), is_below(path))
INTERPOSE(int, truncate64, (const char *path, off64_t size), (path, size), is_below(path))
INTERPOSE(int, mkdir, (const char *path, mode_t mode), (path, mode), is_below(path))
INTERPOSE(int, rmdir, (const char *path), (path), is_below(path))
INTERPOSE(int, unlink, (const char *path), (path), is_below(path))
INTERPOSE(int, unlinkat, (int fd, const char *path, int flags), (fd, path, flags), is_at_below(fd, path))
INTERPOSE(int, rename, (const char *from, const char *to), (from, to), is_below(from) || is_below(to))
INTERPOSE(int, renameat, (int fd, const char *from, int other, const char *to), (fd, from, other, to),
          is_at_below(fd, from) || is_at_below(other, to))
INTERPOSE(ssize_t, sendfile, (int to, int from, off_t *at, size_t size), (to, from, at, size), is_fd_below(to))
INTERPOSE(ssize_t, sendfile64, (int to, int from, off64_t *at, size_t size), (to, from, at, size),
          is_fd_below(to))
INTERPOSE(ssize_t, copy_file_range,
          (int from, off64_t *at, int to, off64_t *there, size_t size, unsigned flags),
          (from, at, to, there, size, flags), is_fd_below(to))

ssize_t write(int fd, const void *data, size_t size) {
    int dies = is_fatal(is_fd_below(fd));
    ssize_t written = REAL(write)(fd, data, dies ? size / 2 : size);
    if (dies) end();
    return written;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    int dies = is_fatal(is_fd_below(fd));
    ssize_t written = REAL(pwrite64)(fd, data, dies ? size / 2 : size, at);
    if (dies) end();
    return written;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    int dies = is_fatal(is_fd_below(fd));
    ssize_t written = REAL(writev)(fd, parts, dies ? count / 2 : count);
    if (dies) end();
    return written;
}

#define OPEN(name)                                                              \
    int name(const char *path, int flags, ...) {                                \
        va_list more;                                                           \
        va_start(more, flags);                                                  \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more);                                                           \
        if (is_fatal(flags & (O_CREAT | O_TRUNC) && is_below(path))) end();     \
        return REAL(name)(path, flags, mode);                                   \
    }

OPEN(open)
OPEN(open64)

FILE *fopen(const char *path, const char *mode) {
    if (is_fatal(mode[0] != 'r' && is_below(path))) end();
    return REAL(fopen)(path, mode);
}

FILE *fopen64(const char *path, const char *mode) {
    if (is_fatal(mode[0] != 'r' && is_below(path))) end();
    return REAL(fopen64)(path, mode);
}
