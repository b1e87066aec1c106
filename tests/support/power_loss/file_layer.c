// A layer between a program and the C library that writes down, in order, everything that the
// program does to files below one directory. See mod.rs for what the test makes of it.
//
// QUORATE_POWER_ROOT     the directory, canonical and without a slash at the end
// QUORATE_POWER_JOURNAL  where the records go; appended to
// QUORATE_POWER_SYNC_US  a sync takes a random time up to this; it does not reach the real disk
//
// A change is recorded before it is made, under one lock, and taken back if it fails. So the journal
// has the order of the changes, and a killed process has made all of them but for the last.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
    CREATE = 1,   // path, file
    SIZE,         // file, a: the new size
    WRITE,        // file, a: offset, data
    SYNC_BEGIN,   // file, a: number of the sync; of a directory: path, file 0
    SYNC_END,     // a: number of the sync
    MAKE_DIR,     // path
    RENAME,       // path, data: the new path
    UNLINK,       // path
    REMOVE_DIR,   // path
    FAILED,       // the record before did not happen; a: of a write, the bytes that were written
    UNKNOWN,      // path: a call that this layer does not understand
};

struct head {
    uint32_t magic, kind;
    uint64_t file, a;
    uint32_t path_bytes, data_bytes;
};

static char root[PATH_MAX];
static size_t root_bytes;
static int journal = -1;
static unsigned sync_us;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static uint64_t sync_number;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static void start(void) {
    const char *dir = getenv("QUORATE_POWER_ROOT"), *file = getenv("QUORATE_POWER_JOURNAL");
    const char *us = getenv("QUORATE_POWER_SYNC_US");
    if (!dir || !file) return;
    snprintf(root, sizeof root, "%s", dir);
    root_bytes = strlen(root);
    sync_us = us ? atoi(us) : 0;
    sync_number = (uint64_t)getpid() << 32;
    journal = REAL(open64)(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (journal < 0) abort();
}

// Whether a path is that of the directory or below it.
static int is_below(const char *path) {
    pthread_once(&once, start);
    return journal >= 0 && strncmp(path, root, root_bytes) == 0 &&
           (path[root_bytes] == '/' || path[root_bytes] == 0);
}

static int fd_path(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t bytes = readlink(link, path, PATH_MAX - 1);
    if (bytes < 0) return 0;
    path[bytes] = 0;
    return 1;
}

// The absolute path of a name; nonzero if it is ours.
static int full_path(int dir, const char *name, char *path) {
    int saved = errno;
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
    } else {
        char base[PATH_MAX];
        if (dir == AT_FDCWD ? !getcwd(base, sizeof base) : !fd_path(dir, base)) base[0] = 0;
        if (snprintf(path, PATH_MAX, "%s/%s", base, name) >= PATH_MAX) abort();
    }
    errno = saved;
    return is_below(path);
}

// Fills `path` and `about` if the descriptor is a file or directory of ours.
static int is_ours(int fd, char *path, struct stat *about) {
    int saved = errno;
    int ours = fd_path(fd, path) && is_below(path) && fstat(fd, about) == 0;
    errno = saved;
    return ours;
}

static void note(enum kind kind, uint64_t file, uint64_t a, const char *path, const void *data,
                 size_t data_bytes) {
    int saved = errno;
    struct head head = {0x4a525750, kind, file, a, path ? strlen(path) : 0, data_bytes};
    struct iovec parts[3] = {{&head, sizeof head},
                             {(void *)path, head.path_bytes},
                             {(void *)data, data_bytes}};
    size_t all = sizeof head + head.path_bytes + data_bytes;
    if (REAL(writev)(journal, parts, 3) != (ssize_t)all) abort();
    errno = saved;
}

static void unknown(const char *call) { note(UNKNOWN, 0, 0, call, NULL, 0); }

// ---- files

static int open_at(int dir, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    __typeof__(&openat64) call = REAL(openat64);
    if (!full_path(dir, name, path) || !(flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE)
        return call(dir, name, flags, mode);
    pthread_mutex_lock(&lock);
    struct stat about;
    int saved = errno, existed = stat(path, &about) == 0;
    errno = saved;
    if (existed && (flags & O_TRUNC) && about.st_size > 0) note(SIZE, about.st_ino, 0, NULL, NULL, 0);
    int fd = call(dir, name, flags, mode);
    if (fd < 0 && existed && (flags & O_TRUNC) && about.st_size > 0) note(FAILED, 0, 0, NULL, NULL, 0);
    if (fd >= 0 && !existed && fstat(fd, &about) == 0) note(CREATE, about.st_ino, 0, path, NULL, 0);
    if (flags & (O_DSYNC | O_SYNC)) unknown("open with O_SYNC");
    pthread_mutex_unlock(&lock);
    return fd;
}

static mode_t mode_of(int flags, va_list rest) {
    return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name)                                       \
    int name(const char *path, int flags, ...) {         \
        va_list rest;                                    \
        va_start(rest, flags);                           \
        mode_t mode = mode_of(flags, rest);              \
        va_end(rest);                                    \
        return open_at(AT_FDCWD, path, flags, mode);     \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                     \
    int name(int dir, const char *path, int flags, ...) {\
        va_list rest;                                    \
        va_start(rest, flags);                           \
        mode_t mode = mode_of(flags, rest);              \
        va_end(rest);                                    \
        return open_at(dir, path, flags, mode);          \
    }
OPENAT(openat)
OPENAT(openat64)

int creat(const char *path, mode_t mode) {
    return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *path, mode_t mode) { return creat(path, mode); }

// A write at `offset`, or at the cursor if that is negative.
static ssize_t write_at(int fd, const void *data, size_t bytes, off_t offset) {
    char path[PATH_MAX];
    struct stat about;
    if (fd == journal || !is_ours(fd, path, &about))
        return offset < 0 ? REAL(write)(fd, data, bytes) : REAL(pwrite64)(fd, data, bytes, offset);
    pthread_mutex_lock(&lock);
    off_t at = offset;
    if (at < 0) {
        int appends = fcntl(fd, F_GETFL) & O_APPEND;
        at = appends ? (fstat(fd, &about), about.st_size) : lseek(fd, 0, SEEK_CUR);
    }
    note(WRITE, about.st_ino, at, NULL, data, bytes);
    ssize_t done = offset < 0 ? REAL(write)(fd, data, bytes) : REAL(pwrite64)(fd, data, bytes, offset);
    if (done != (ssize_t)bytes) note(FAILED, 0, done < 0 ? 0 : done, NULL, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t write(int fd, const void *data, size_t bytes) { return write_at(fd, data, bytes, -1); }

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at) {
    return write_at(fd, data, bytes, at);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t at) {
    return write_at(fd, data, bytes, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    struct stat about;
    if (fd == journal || !is_ours(fd, path, &about)) return REAL(writev)(fd, parts, count);
    // The first part only: a short write, as the caller must expect.
    for (int i = 0; i < count; i++)
        if (parts[i].iov_len) return write_at(fd, parts[i].iov_base, parts[i].iov_len, -1);
    return 0;
}

static int set_size(int fd, off_t size) {
    char path[PATH_MAX];
    struct stat about;
    if (!is_ours(fd, path, &about)) return REAL(ftruncate64)(fd, size);
    pthread_mutex_lock(&lock);
    note(SIZE, about.st_ino, size, NULL, NULL, 0);
    int done = REAL(ftruncate64)(fd, size);
    if (done) note(FAILED, 0, 0, NULL, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}

int ftruncate(int fd, off_t size) { return set_size(fd, size); }
int ftruncate64(int fd, off64_t size) { return set_size(fd, size); }

// ---- syncs: they promise what was written before they began, once they have returned

static int sync_fd(int fd, int (*call)(int)) {
    char path[PATH_MAX];
    struct stat about;
    if (!is_ours(fd, path, &about)) return call(fd);
    int is_dir = S_ISDIR(about.st_mode);
    pthread_mutex_lock(&lock);
    uint64_t number = ++sync_number, random = number * 6364136223846793005u ^ (number << 13);
    note(SYNC_BEGIN, is_dir ? 0 : about.st_ino, number, is_dir ? path : NULL, NULL, 0);
    pthread_mutex_unlock(&lock);
    if (sync_us) usleep((random >> 33) % sync_us);
    pthread_mutex_lock(&lock);
    note(SYNC_END, 0, number, NULL, NULL, 0);
    pthread_mutex_unlock(&lock);
    return 0;
}

int fsync(int fd) { return sync_fd(fd, REAL(fsync)); }
int fdatasync(int fd) { return sync_fd(fd, REAL(fdatasync)); }

// These promise nothing that a program may rely on after a power loss, or nothing to us.
int sync_file_range(int fd, off64_t at, off64_t bytes, unsigned flags) {
    char path[PATH_MAX];
    struct stat about;
    return is_ours(fd, path, &about) ? 0 : REAL(sync_file_range)(fd, at, bytes, flags);
}

// ---- names

#define CHANGE(kind, path, data, bytes, call)                   \
    do {                                                        \
        pthread_mutex_lock(&lock);                              \
        note(kind, 0, 0, path, data, bytes);                    \
        int done = call;                                        \
        if (done) note(FAILED, 0, 0, NULL, NULL, 0);            \
        pthread_mutex_unlock(&lock);                            \
        return done;                                            \
    } while (0)

static int move(int from_dir, const char *from, int to_dir, const char *to) {
    char old[PATH_MAX], new[PATH_MAX];
    int ours = full_path(from_dir, from, old);
    if (full_path(to_dir, to, new) != ours) unknown("rename across the border");
    if (!ours) return REAL(renameat)(from_dir, from, to_dir, to);
    CHANGE(RENAME, old, new, strlen(new), REAL(renameat)(from_dir, from, to_dir, to));
}

int rename(const char *from, const char *to) { return move(AT_FDCWD, from, AT_FDCWD, to); }

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    return move(from_dir, from, to_dir, to);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    char path[PATH_MAX];
    if (flags & 2) {  // RENAME_EXCHANGE
        if (full_path(from_dir, from, path)) unknown("an exchange of names");
        return REAL(renameat2)(from_dir, from, to_dir, to, flags);
    }
    return move(from_dir, from, to_dir, to);
}

int unlinkat(int dir, const char *name, int flags) {
    char path[PATH_MAX];
    if (!full_path(dir, name, path)) return REAL(unlinkat)(dir, name, flags);
    enum kind kind = flags & AT_REMOVEDIR ? REMOVE_DIR : UNLINK;
    CHANGE(kind, path, NULL, 0, REAL(unlinkat)(dir, name, flags));
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int remove(const char *name) {
    return unlink(name) ? rmdir(name) : 0;
}

int mkdirat(int dir, const char *name, mode_t mode) {
    char path[PATH_MAX];
    if (!full_path(dir, name, path)) return REAL(mkdirat)(dir, name, mode);
    CHANGE(MAKE_DIR, path, NULL, 0, REAL(mkdirat)(dir, name, mode));
}

int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

// ---- calls that would need more thought if a member made them

#define REFUSE_FD(type, name, arguments, fd, call)                        \
    type name arguments {                                                 \
        char path[PATH_MAX];                                              \
        struct stat about;                                                \
        if (fd >= 0 && is_ours(fd, path, &about)) unknown(#name);         \
        return call;                                                      \
    }
REFUSE_FD(int, fallocate64, (int fd, int mode, off64_t at, off64_t bytes), fd,
          REAL(fallocate64)(fd, mode, at, bytes))
REFUSE_FD(int, fallocate, (int fd, int mode, off_t at, off_t bytes), fd,
          REAL(fallocate)(fd, mode, at, bytes))
REFUSE_FD(int, posix_fallocate64, (int fd, off64_t at, off64_t bytes), fd,
          REAL(posix_fallocate64)(fd, at, bytes))
REFUSE_FD(ssize_t, pwritev64, (int fd, const struct iovec *parts, int count, off64_t at), fd,
          REAL(pwritev64)(fd, parts, count, at))
REFUSE_FD(ssize_t, copy_file_range,
          (int in, off64_t *in_at, int out, off64_t *out_at, size_t bytes, unsigned flags), out,
          REAL(copy_file_range)(in, in_at, out, out_at, bytes, flags))

void *mmap64(void *address, size_t bytes, int protection, int flags, int fd, off64_t at) {
    char path[PATH_MAX];
    struct stat about;
    int shared = (protection & PROT_WRITE) && (flags & MAP_TYPE) != MAP_PRIVATE;
    if (fd >= 0 && shared && is_ours(fd, path, &about)) unknown("mmap of a file for writing");
    return REAL(mmap64)(address, bytes, protection, flags, fd, at);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    char path[PATH_MAX];
    if (full_path(to_dir, to, path)) unknown("link");
    return REAL(linkat)(from_dir, from, to_dir, to, flags);
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int symlink(const char *target, const char *name) {
    char path[PATH_MAX];
    if (full_path(AT_FDCWD, name, path)) unknown("symlink");
    return REAL(symlink)(target, name);
}
