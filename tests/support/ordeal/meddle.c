/* Loaded into one member (LD_PRELOAD): shifts its wall clock and slows its disk, as a page says.
 *
 * The page is a file that the test writes at any time, mapped here, so that a look at it costs
 * nothing: two native 64-bit numbers, by how many nanoseconds the wall clock is off, and how many
 * nanoseconds every flush takes longer. The monotonic clock stays: no kernel lets it jump. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

struct page {
    volatile int64_t clock_off;
    volatile int64_t flush_longer;
};

static const struct page untouched;
static const struct page *page = &untouched;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

/* The linker's tables are complete before any constructor, and the member reads no clock earlier. */
__attribute__((constructor)) static void find_page(void) {
    real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("QUORATE_MEDDLE");
    int file = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof(struct page), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED)
        page = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = real_clock_gettime != NULL ? real_clock_gettime(clock, now)
                                            : (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t all = now->tv_sec * SECOND + now->tv_nsec + page->clock_off;
        if (all < 0)
            all = 0;
        now->tv_sec = all / SECOND;
        now->tv_nsec = all % SECOND;
    }
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec precise;
    int result = clock_gettime(CLOCK_REALTIME, &precise);
    if (result == 0) {
        now->tv_sec = precise.tv_sec;
        now->tv_usec = precise.tv_nsec / 1000;
    }
    return result;
}

time_t time(time_t *copy) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (copy != NULL)
        *copy = precise.tv_sec;
    return precise.tv_sec;
}

static void wait_for_disk(void) {
    int64_t longer = page->flush_longer;
    if (longer > 0) {
        struct timespec pause = {longer / SECOND, longer % SECOND};
        nanosleep(&pause, NULL);
    }
}

int fsync(int file) {
    wait_for_disk();
    return (int)syscall(SYS_fsync, file);
}

int fdatasync(int file) {
    wait_for_disk();
    return (int)syscall(SYS_fdatasync, file);
}
