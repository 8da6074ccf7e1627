/* Loaded before the C library: answers what a bad file system answers, while a file says so.
 *
 * DRILL_SHIM names a folder. While it holds a file named ENOLCK no lock is given; while it holds one
 * named EROFS (or EIO) all that writes below DRILL_SHIM_ROOT fails with that error.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int says(const char *name) {
    const char *folder = getenv("DRILL_SHIM");
    char path[PATH_MAX];
    if (!folder) return 0;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int before = errno, found = access(path, F_OK) == 0;
    errno = before;
    return found;
}

static int broken(void) { return says("EROFS") ? EROFS : says("EIO") ? EIO : 0; }

static int below(const char *path) {
    const char *root = getenv("DRILL_SHIM_ROOT");
    return root && path && strncmp(path, root, strlen(root)) == 0;
}

static int fails_path(const char *path) {
    int number = below(path) ? broken() : 0;
    if (number) errno = number;
    return number;
}

static int fails_at(int folder, const char *path) {
    char link[64], found[PATH_MAX];
    if (path && path[0] == '/') return fails_path(path);
    if (folder == AT_FDCWD) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t size = readlink(link, found, sizeof found - 1);
    if (size < 0) return 0;
    found[size] = 0;
    return fails_path(found);
}

static int fails_fd(int fd) { return broken() ? fails_at(fd, "") : 0; }

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)); }

static mode_t mode_of(int flags, va_list rest) {
    return (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name)                                                        \
    int name(const char *path, int flags, ...) {                          \
        va_list rest;                                                     \
        va_start(rest, flags);                                            \
        mode_t mode = mode_of(flags, rest);                               \
        va_end(rest);                                                     \
        if (writes(flags) && fails_path(path)) return -1;                 \
        return NEXT(name)(path, flags, mode);                             \
    }
#define OPENAT(name)                                                      \
    int name(int folder, const char *path, int flags, ...) {              \
        va_list rest;                                                     \
        va_start(rest, flags);                                            \
        mode_t mode = mode_of(flags, rest);                               \
        va_end(rest);                                                     \
        if (writes(flags) && fails_at(folder, path)) return -1;           \
        return NEXT(name)(folder, path, flags, mode);                     \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
    return fails_fd(fd) ? -1 : NEXT(write)(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int number) {
    return fails_fd(fd) ? -1 : NEXT(writev)(fd, parts, number);
}
int fsync(int fd) { return fails_fd(fd) ? -1 : NEXT(fsync)(fd); }
int ftruncate(int fd, off_t size) { return fails_fd(fd) ? -1 : NEXT(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return fails_fd(fd) ? -1 : NEXT(ftruncate64)(fd, size); }
int truncate(const char *p, off_t size) { return fails_path(p) ? -1 : NEXT(truncate)(p, size); }
int rename(const char *a, const char *b) { return fails_path(b) ? -1 : NEXT(rename)(a, b); }
int renameat(int x, const char *a, int y, const char *b) {
    return fails_at(y, b) ? -1 : NEXT(renameat)(x, a, y, b);
}
int link(const char *a, const char *b) { return fails_path(b) ? -1 : NEXT(link)(a, b); }
int linkat(int x, const char *a, int y, const char *b, int flags) {
    return fails_at(y, b) ? -1 : NEXT(linkat)(x, a, y, b, flags);
}
int unlink(const char *path) { return fails_path(path) ? -1 : NEXT(unlink)(path); }
int unlinkat(int folder, const char *path, int flags) {
    return fails_at(folder, path) ? -1 : NEXT(unlinkat)(folder, path, flags);
}
int mkdir(const char *path, mode_t mode) { return fails_path(path) ? -1 : NEXT(mkdir)(path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) {
    return fails_at(folder, path) ? -1 : NEXT(mkdirat)(folder, path, mode);
}
int chmod(const char *path, mode_t mode) { return fails_path(path) ? -1 : NEXT(chmod)(path, mode); }
int utimensat(int folder, const char *path, const struct timespec times[2], int flags) {
    return fails_at(folder, path) ? -1 : NEXT(utimensat)(folder, path, times, flags);
}

static int no_locks(void) {
    if (!says("ENOLCK")) return 0;
    errno = ENOLCK;
    return 1;
}

int flock(int fd, int operation) { return no_locks() ? -1 : NEXT(flock)(fd, operation); }
int lockf(int fd, int command, off_t size) { return no_locks() ? -1 : NEXT(lockf)(fd, command, size); }

static int is_lock(int command) {
    return command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;
}

#define FCNTL(name)                                                       \
    int name(int fd, int command, ...) {                                  \
        va_list rest;                                                     \
        va_start(rest, command);                                          \
        void *argument = va_arg(rest, void *);                            \
        va_end(rest);                                                     \
        if (is_lock(command) && no_locks()) return -1;                    \
        return NEXT(name)(fd, command, argument);                         \
    }
FCNTL(fcntl)
FCNTL(fcntl64)
