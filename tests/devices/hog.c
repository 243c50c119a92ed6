/* hog CPU PERIOD_US: takes a share of one processor away from everybody else, evenly.

   In each period it computes for a share of it, before every ordinary process (SCHED_FIFO), and
   sleeps for the rest: what runs there becomes slower by 1 / (1 - share), as on a slower machine.
   Each line of standard input, "FROM TO SECONDS", lets the share go from one to the other in that
   time and stay there. It ends with its input. */

#define _GNU_SOURCE
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void sleep_until(double s)
{
    struct timespec t = {(time_t)s, (long)(1e9 * (s - (time_t)s))};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static int bound_to(int cpu)
{
    cpu_set_t only;
    struct sched_param first = {.sched_priority = 10};
    CPU_ZERO(&only);
    CPU_SET(cpu, &only);
    return sched_setaffinity(0, sizeof only, &only) == 0 &&
           sched_setscheduler(0, SCHED_FIFO, &first) == 0;
}

int main(int count, char **words)
{
    double from = 0, to = 0, seconds = 0, changed = now_s(), next = changed;
    struct pollfd orders = {.fd = STDIN_FILENO, .events = POLLIN};

    if (count != 3 || !bound_to(atoi(words[1]))) {
        perror("hog");
        return 1;
    }
    double period = 1e-6 * atof(words[2]);
    mlockall(MCL_CURRENT | MCL_FUTURE);
    puts("up");
    fflush(stdout);
    for (;;) {
        if (poll(&orders, 1, 0) > 0) {
            char line[256];
            ssize_t got = read(STDIN_FILENO, line, sizeof line - 1);
            if (got <= 0)
                return 0;
            line[got] = 0;
            sscanf(line, "%lf %lf %lf", &from, &to, &seconds);
            changed = now_s();
        }
        double past = seconds > 0 ? (now_s() - changed) / seconds : 1;
        double share = past < 1 ? from + (to - from) * past : to;
        double end = next + period * (share < 0.95 ? share : 0.95);
        while (now_s() < end)
            ;
        next += period;
        if (next < now_s())
            next = now_s();
        sleep_until(next);
    }
}
