# The lock that keeps two runs from changing a host at the same time. rigup/operations/run_lock.py sends it and reads its answer.
#
# Perl for the same reason as rigup/ssh/batch.pl. Arguments: FILE COPY ACTION RUN USER MACHINE, and for "outlast" SECONDS.
#   take      takes the lock and prints "taken"; if another run holds it, prints "held RUN USER MACHINE PID SECONDS"
#   outlast   writes the copy, which keeps the lock for SECONDS although a reboot empties /run
# A run holds the lock as long as its ssh connection exists: the record names the sshd process of that connection.
use strict;
use warnings;
use Fcntl qw(:flock O_CREAT O_RDWR);
use IO::Handle;

my ($file, $copy, $action, $run, $user, $machine, $seconds) = @ARGV;
my @NAMES = qw(run user machine since boot pid start until);

(my $directory = $file) =~ s{/[^/]+$}{};
mkdir($directory, 0755);
sysopen(my $lock, $file, O_RDWR | O_CREAT, 0600) or die("cannot write $file: $!\n");
flock($lock, LOCK_EX) or die("cannot lock $file: $!\n");
my $record = read_record($lock);
if (!$record && open(my $kept, '<', $copy)) { $record = read_record($kept) }

if ($action eq 'outlast') {
    die("this run does not hold the lock\n") if (!$record || $record->{run} ne $run);
    $record->{until} = time() + $seconds;
    open(my $kept, '>', $copy) or die("cannot write $copy: $!\n");
    print $kept as_line($record);
    $kept->flush() && $kept->sync() or die("cannot write $copy: $!\n");
    exit(0);
}
my $is_held = $record && is_alive($record);
if ($is_held && $record->{run} ne $run) {
    print join(' ', 'held', @{$record}{qw(run user machine pid)}, time() - $record->{since}), "\n";
    exit(0);
}

my $pid = session();
my $since = $is_held ? $record->{since} : time();
my %mine = (run => $run, user => $user, machine => $machine, since => $since, boot => boot(), pid => $pid, until => 0);
$mine{start} = start_of($pid);
truncate($lock, 0);
seek($lock, 0, 0);
print $lock as_line(\%mine);
$lock->flush() or die("cannot write $file: $!\n");
unlink($copy);
print "taken\n";

sub read_record {
    my ($handle) = @_;
    my @fields = split(' ', <$handle> // '');
    # A record that a full disk cut short names no holder.
    return undef if (@fields != @NAMES || grep { !/^[\w.\@-]+$/ } @fields);
    my %found;
    @found{@NAMES} = @fields;
    return \%found;
}

sub as_line {
    my ($found) = @_;
    return join(' ', @{$found}{@NAMES}) . "\n";
}

sub is_alive {
    my ($found) = @_;
    return time() < $found->{until} if ($found->{boot} ne boot());
    return start_of($found->{pid}) eq $found->{start};
}

sub boot { return slurp('/proc/sys/kernel/random/boot_id') =~ s/\s+//gr }

# The nearest sshd above this process; without one, the topmost process below init.
sub session {
    my ($process, $top) = ($$, $$);
    while ($process > 1) {
        my ($comm, $parent) = slurp("/proc/$process/stat") =~ /^\d+ \((.*)\) \S (\d+)/s or last;
        return $process if ($comm =~ /^sshd/);
        ($top, $process) = ($process, $parent);
    }
    return $top;
}

# When a process started, in clock ticks since the boot; "-" if there is none with this number.
sub start_of {
    my ($process) = @_;
    my ($after) = slurp("/proc/$process/stat") =~ /.*\) (.*)/s or return '-';
    return (split(' ', $after))[19];
}

sub slurp {
    my ($path) = @_;
    open(my $handle, '<', $path) or return '';
    local $/;
    return <$handle> // '';
}
