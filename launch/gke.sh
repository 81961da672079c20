#!/usr/bin/env bash
# Runs a command on a TPU slice of a GKE cluster, as a JobSet with one pod for each host.
#
#   docker build --file=launch/Dockerfile --tag=IMAGE . && docker push IMAGE
#   launch/gke.sh run NAME --image=IMAGE --accelerator=tpu-v5p-slice --topology=2x2x4 [--chips=4] [--bucket=BUCKET] \
#     [--service_account=ACCOUNT] -- launch.train --config=FILE --workdir=DIR
#   launch/gke.sh status NAME
#   launch/gke.sh logs NAME
#   launch/gke.sh delete NAME
#
# --accelerator and --topology are those of the node pool, --chips the TPU chips of one of its hosts. --bucket is mounted
# at /BUCKET with the Cloud Storage FUSE driver, as the Kubernetes --service_account. Other flags before -- are kubectl's
# and are passed on, such as --namespace; --dry_run prints the manifest and the command, and runs nothing. What follows --
# is passed to `python -m` in every pod, with --distributed=auto. When a pod ends with an error, or a node is taken away,
# all are started again, ten times at most, and launch.train resumes.

set -eo pipefail
cd "$(dirname "$0")/.."
source launch/shell.sh

RESTARTS=10
SECONDS_TO_SAVE=300

split_arguments "$@"
action=${own[0]} name=${own[1]} flags=() image='' accelerator='' topology='' chips=4 bucket='' account=default
case $action:$name in
  : | *: | *:-*) fail "give an action and the name of the job, such as: $0 status NAME; see --help" ;;
esac
for flag in "${own[@]:2}"; do
  value=${flag#*=}
  case $flag in
    --image=*) image=$value ;;
    --accelerator=*) accelerator=$value ;;
    --topology=*) topology=$value ;;
    --chips=*) chips=$value ;;
    --bucket=*) bucket=${value#gs://} ;;
    --service_account=*) account=$value ;;
    *) flags+=("$flag") ;;
  esac
done

# json WORD...: the words as a list in JSON, which is YAML. In a container's command, $$( stands for $(.
json() {
  local word line=''
  for word in "$@"; do
    word=${word//\\/\\\\}
    word=${word//\"/\\\"}
    line+="\"${word//\$(/\$\$(}\", "
  done
  printf '[%s]' "${line%, }"
}

manifest() {
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $RESTARTS
  replicatedJobs:
  - name: slice
    replicas: 1
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        backoffLimit: 0
        template:
          metadata:
            annotations:
              gke-gcsfuse/volumes: "$([[ $bucket ]] && echo true || echo false)"
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: $SECONDS_TO_SAVE
            serviceAccountName: $account
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $topology
            containers:
            - name: main
              image: $image
              command: $(json python -m "${command[@]}")
              env:
              - {name: JAX_PLATFORMS, value: "tpu,cpu"}
              ports:
              - containerPort: 8471
              - containerPort: 8482
              resources:
                limits: {google.com/tpu: $chips}
END
  [[ $bucket ]] && cat <<END
              volumeMounts:
              - {name: bucket, mountPath: /$bucket}
            volumes:
            - name: bucket
              csi:
                driver: gcsfuse.csi.storage.gke.io
                volumeAttributes: {bucketName: $bucket, mountOptions: implicit-dirs}
END
  return 0
}

start() {
  require_command
  distribute
  [[ $image && $accelerator && $topology ]] || fail "give --image, --accelerator and --topology; see --help"
  [[ $topology =~ ^[0-9]+(x[0-9]+){1,2}$ && $chips =~ ^[1-9][0-9]*$ ]] ||
    fail "--topology=$topology --chips=$chips: give numbers, such as --topology=2x2x4 --chips=4"
  local all=$((${topology//x/*}))
  ((all % chips == 0)) || fail "--topology=$topology has $all chips, which --chips=$chips does not divide"
  hosts=$((all / chips))
  if [[ $dry_run ]]; then
    manifest
    run kubectl apply "${flags[@]}" --filename=-
  else
    run kubectl apply "${flags[@]}" --filename=- < <(manifest)
  fi
}

case $action in
  run) start ;;
  status) run kubectl get "${flags[@]}" jobset,pods --selector="jobset.sigs.k8s.io/jobset-name=$name" ;;
  logs) run kubectl logs "${flags[@]}" --selector="jobset.sigs.k8s.io/jobset-name=$name" --container=main --prefix --tail=40 ;;
  delete) run kubectl delete "${flags[@]}" jobset "$name" ;;
  *) fail "$action is not an action; see --help" ;;
esac
