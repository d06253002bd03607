// A disk that fills up, for one process and those it starts: after DISK_FULL_AFTER bytes below the folder
// DISK_FULL_BELOW, writing there answers ENOSPC, as the kernel does, with a short write at the border. With
// DISK_FULL_UNSEEN=1 nobody is told how little room is left, as where a quota is what is used up.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static _Atomic long long written;

static long long room(void) {
    long long left = atoll(getenv("DISK_FULL_AFTER")) - written;
    return left > 0 ? left : 0;
}

static int is_below(int fd) {
    char link[64], path[4096];
    const char *below = getenv("DISK_FULL_BELOW");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = below ? readlink(link, path, sizeof path - 1) : -1;
    return n > 0 && !strncmp(path, below, strlen(below));
}

// How much of `size` may be written to `fd`; 0 with errno where nothing.
static size_t granted(int fd, size_t size) {
    if (!size || !is_below(fd)) return size;
    size_t left = (size_t)room();
    if (!left) errno = ENOSPC;
    size = size < left ? size : left;
    written += (long long)size;
    return size;
}

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    size_t part = granted(fd, size);
    return size && !part ? -1 : real(fd, data, part);
}

#define POSITIONED(name, offset_type)                                                       \
    ssize_t name(int fd, const void *data, size_t size, offset_type place) {                \
        ssize_t (*real)(int, const void *, size_t, offset_type) = dlsym(RTLD_NEXT, #name);  \
        size_t part = granted(fd, size);                                                    \
        return size && !part ? -1 : real(fd, data, part, place);                            \
    }
POSITIONED(pwrite, off_t)
POSITIONED(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int count) {
    ssize_t (*real)(int, const struct iovec *, int) = dlsym(RTLD_NEXT, "writev");
    if (!is_below(fd)) return real(fd, parts, count);
    ssize_t all = 0;
    for (int i = 0; i < count; i++) {
        ssize_t done = write(fd, parts[i].iov_base, parts[i].iov_len);
        if (done < 0) return all ? all : -1;
        all += done;
        if ((size_t)done < parts[i].iov_len) break;
    }
    return all;
}

#define ROOM(name, kind)                                                                    \
    int name(const char *path, struct kind *result) {                                       \
        int (*real)(const char *, struct kind *) = dlsym(RTLD_NEXT, #name);                 \
        int code = real(path, result);                                                      \
        const char *below = getenv("DISK_FULL_BELOW");                                      \
        if (!code && below && !getenv("DISK_FULL_UNSEEN") && !strncmp(path, below, strlen(below))) \
            result->f_bavail = result->f_bfree = (fsblkcnt_t)room() / result->f_frsize;     \
        return code;                                                                        \
    }
ROOM(statvfs, statvfs)
ROOM(statvfs64, statvfs64)
